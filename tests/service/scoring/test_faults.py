"""Faults of the device: which errors are one, what they answer, and that nothing undoes them."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import torch
from device_rig import Rig, rig

import service.scoring.device
from laplora.errors import ArtifactCorruptError
from service.errors import DeviceFaultError
from service.scoring.device_faults import DeviceHealth, is_device_fault, is_out_of_memory

FAULT = "CUDA error: device-side assert triggered"


def accelerator_error(text: str, code: int | None = None) -> Exception:
    error = torch.AcceleratorError(text)
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    return error


#: Errors, and the texts of RuntimeErrors, by whether they are faults and whether they say that there is no memory.
KINDS: dict[tuple[bool, bool], list[Exception | str]] = {
    (True, False): [
        f"{FAULT}\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`",
        "CUDA error: something that came with a later driver",
        "CUDA driver error: unknown error",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "HIP error: unspecified launch failure",
        "uncorrectable ECC error encountered",
        "unspecified launch failure",
        "device-side assert triggered",
        "an illegal memory access was encountered",
        accelerator_error("of another kind"),
        accelerator_error("an illegal memory access", 700),
    ],
    (False, True): [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "DefaultCPUAllocator: can't allocate memory",
        MemoryError(),
        torch.OutOfMemoryError("2.00 GiB"),
        accelerator_error("CUDA error: out of memory", 2),
    ],
    (False, False): [
        "mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)",
        "CUDA error: invalid argument",
        "CUDA error: invalid configuration argument",
        "CUDA error: invalid device function",
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: too many resources requested for launch",
        "CUDA error: operation not supported",
        "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR: the input matrix may contain NaN",
        accelerator_error("of another kind", 209),
        ValueError("out of memory"),
        ValueError(FAULT),
        KeyError(),
    ],
}


@pytest.mark.parametrize("kind", KINDS, ids=["lost context", "lack of memory", "refused call"])
def test_a_lost_context_is_told_from_a_lack_of_memory_and_a_refused_call(kind: tuple[bool, bool]) -> None:
    for error in KINDS[kind]:
        raised = RuntimeError(error) if isinstance(error, str) else error
        assert (is_device_fault(raised), is_out_of_memory(raised)) == kind, error


@pytest.mark.parametrize("chained", ["__cause__", "__context__"])
def test_a_fault_behind_another_error_is_found(chained: str) -> None:
    """The library's error stands in for one of torch; two may be each other's cause."""
    for text, is_fault in ((FAULT, True), ("size mismatch", False)):
        error, other = ArtifactCorruptError("the adapter does not load"), RuntimeError(text)
        setattr(error, chained, other)
        other.__context__ = error
        assert is_device_fault(error) == is_fault


def assert_ended(device: Rig) -> None:
    """Everything new is refused, nothing is left over."""
    for _ in range(2):
        with pytest.raises(DeviceFaultError):
            device.device.call(lambda: None)
        device.device.stop(join_timeout_s=60)
    device.assert_empty()


def test_a_fault_answers_everyone_and_is_not_retried(device: Rig) -> None:
    device.predictor.poison[666] = RuntimeError(FAULT)
    first = device.occupy()
    # One batch of 16 tokens, and rows beyond it.
    plans = [device.submit(666, 10, 11), device.submit(12), device.submit(*[1] * 7)]
    call = device.device.call(lambda: None)
    device.predictor.released.set()
    assert first.future.result()
    for plan in plans:
        with pytest.raises(DeviceFaultError, match="RuntimeError"):
            plan.future.result()
    assert call.result() is None
    assert len([rows for _, rows in device.batches if 666 in rows]) == 1
    assert "RuntimeError" in str(device.device.health.latch(KeyError())), "the first fault is told"
    assert_ended(device)


@pytest.mark.parametrize("error", [KeyError("bug"), SystemExit("stop")], ids=lambda error: type(error).__name__)
def test_the_thread_that_dies_takes_nobody_with_it(device: Rig, error: BaseException) -> None:
    """An error outside of a prediction, or a call that ends the thread: every request would wait for ever."""
    running = device.occupy()
    waiting, call = device.submit(3), device.device.call(lambda: None)

    def end(*arguments: object) -> None:
        raise error

    device.device._report = end  # type: ignore[method-assign]
    device.predictor.released.set()
    for future in (running.future, waiting.future, call):
        with pytest.raises(DeviceFaultError, match=type(error).__name__):
            future.result()
    assert_ended(device)
    with rig() as other, pytest.raises(DeviceFaultError, match="SystemExit"):
        other.device.call(lambda: sys.exit()).result()


def test_one_that_watches_and_fails_keeps_no_other_from_being_told() -> None:
    """Metrics that fail, and traces after them."""
    with rig(on_batch=(lambda report: report.nothing,)) as device:
        for token in (5, 6):
            assert device.submit(token).future.result()
        device.device.stop(join_timeout_s=60)
        assert len(device.reports) == 2


@pytest.mark.parametrize("where", ["a prediction", "releasing memory"])
def test_a_run_that_does_not_end_is_a_fault(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releasing memory waits for the device: after running out of memory on a sick one, for ever."""
    hanging, let_go = threading.Event(), threading.Event()

    def hang(*arguments: object, **options: object) -> None:
        hanging.set()
        let_go.wait()

    with rig(health=DeviceHealth(hang_s=0.01)) as device:
        device.device.end_if_hung()
        if where == "a prediction":
            monkeypatch.setattr(device.predictor, "predict", hang)
        else:
            monkeypatch.setattr(service.scoring.device, "_release_device_memory", hang)
            device.predictor.most_rows = 1
        plan = device.submit(2, 3)
        hanging.wait()
        waiting = device.submit(4)
        while not device.device.health.hung:
            time.sleep(0.001)
        device.device.end_if_hung()
        for future in (plan.future, waiting.future):
            with pytest.raises(DeviceFaultError, match="DeviceHungError"):
                future.result()
        let_go.set()
        assert_ended(device)


def test_a_fault_while_memory_is_released_is_latched(device: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def release() -> None:
        raise RuntimeError(FAULT)

    monkeypatch.setattr(service.scoring.device, "_release_device_memory", release)
    device.predictor.most_rows = 1
    with pytest.raises(DeviceFaultError, match="RuntimeError"):
        device.submit(2, 3).future.result()
    assert_ended(device)
