"""Errors of the device: out of memory, which passes, and faults, after which it answers nothing any more.

After a CUDA fault every later call of the process fails. So :class:`DeviceHealth` latches: ``service.__main__`` sees it
and leaves with ``ExitStatus.DEVICE_FAULT`` once what is open has its answer.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import DeviceFaultError, DeviceStalledError
from service.threads import frames_of

_log = logging.getLogger("laplora.service")

#: The beginnings of a device's errors from torch, cuBLAS, cuDNN and Triton. cuSOLVER is left out: it reports an
#: internal error for a matrix with NaN too, and a lost context shows at the next call of another library.
_DEVICE_ERROR = re.compile(
    r"\b(CUDA|HIP)( driver)? error:|Triton Error \[(CUDA|HIP)\]|CU(BLAS|DNN)_STATUS_"
    r"|uncorrectable ECC error|unspecified launch failure|device-side assert|illegal memory access"
)
#: Errors of one call that leave the context as it was: they refuse the call's arguments, or find no kernel for it.
_CALL_REFUSED = re.compile(
    r"invalid argument|invalid configuration argument|invalid device function|no kernel image is available"
    r"|too many resources requested for launch|operation not supported"
    r"|_STATUS_(INVALID_VALUE|NOT_SUPPORTED|BAD_PARAM|ARCH_MISMATCH)"
)
#: The same by number (``cudaError_t``), which torch.AcceleratorError carries.
_CALL_REFUSED_CODES = frozenset({1, 9, 98, 209, 701, 801})


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that the device (or the host) has no memory left."""
    if isinstance(error, MemoryError) or _is_named(error, "OutOfMemoryError"):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "_status_alloc_failed"))


def is_device_fault(error: BaseException) -> bool:
    """Return whether an exception, or one that it was raised from, says that the device's context is lost.

    Out of memory is none, nor is a call that the device refused without harm. An error of the device that this does
    not know is one: a new process costs seconds, a lost context every answer from then on.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is one for one in seen):  # errors can be chained in a circle
        if _is_fault(cause):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False


def _is_fault(error: BaseException) -> bool:
    # By name and text: torch is not imported here, and older versions raise a plain RuntimeError.
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    text = str(error)
    if not _is_named(error, "AcceleratorError") and not _DEVICE_ERROR.search(text):
        return False
    code = getattr(error, "error_code", None)
    refused = code in _CALL_REFUSED_CODES if isinstance(code, int) else _CALL_REFUSED.search(text) is not None
    return not refused


def _is_named(error: BaseException, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(error).__mro__)


class DeviceHungError(Exception):
    """A run of the device has taken so long that it is taken never to end. Latched, never answered."""


class DeviceHealth:
    """Whether the device answers. Read from any thread, without a lock.

    Args:
        stall_s: seconds after which a run that has not ended counts as stalled.
        hang_s: seconds after which it is taken never to end.

    Attributes:
        fault: name of the exception's type that latched it; None as long as the device is well.
    """

    def __init__(self, *, stall_s: float = math.inf, hang_s: float = math.inf) -> None:
        self.fault: str | None = None
        self._stall_s = stall_s
        self._hang_s = hang_s
        self._latching = threading.Lock()
        self._run_began: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold for one run of the device, on its thread."""
        self._run_began = time.monotonic()
        try:
            yield
        finally:
            self._run_began = None

    @property
    def hung(self) -> bool:
        """Whether the present run has taken more than ``hang_s``."""
        return self._run_took_more_than(self._hang_s)

    def latch(self, error: BaseException, where: traceback.StackSummary | None = None) -> DeviceFaultError:
        """Record the first fault for good, log it, and return what requests are answered with from now on.

        Args:
            where: the frames to log; None: the error's own.
        """
        with self._latching:
            first = self.fault is None
            self.fault = self.fault or type(error).__name__
        if first:
            # By its type and frames: its text may hold a client's.
            frames = frames_of(error) if where is None else [f"{f.filename}:{f.lineno} {f.name}" for f in where]
            _log.critical(
                "the device failed, the process leaves",
                extra={"event": "device_fault", "error": self.fault, "frames": frames},
            )
        return self._fault_error()

    def require_no_fault(self) -> None:
        """Return if the device has not failed.

        Raises:
            DeviceFaultError: it has, for good.
        """
        if self.fault is not None:
            raise self._fault_error()

    def require_responsive(self) -> None:
        """Return if the device has not failed and no run of it is overdue.

        Raises:
            DeviceFaultError: it has failed, for good.
            DeviceStalledError: the present run has taken more than ``stall_s``.
        """
        self.require_no_fault()
        if self._run_took_more_than(self._stall_s):
            raise DeviceStalledError(f"a run of the device has taken more than {self._stall_s:g} seconds")

    def _run_took_more_than(self, seconds: float) -> bool:
        began = self._run_began
        return began is not None and time.monotonic() - began > seconds

    def _fault_error(self) -> DeviceFaultError:
        return DeviceFaultError(f"the device failed ({self.fault}) and the server starts anew: try again then")
