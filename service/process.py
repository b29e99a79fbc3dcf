"""Settings of a process that serves: before torch is imported, after models load, and at its end."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from typing import NoReturn

from laplora.execution.threads import brief_spins
from service.exit_status import ExitStatus


def prepare_for_torch() -> None:
    """Set what torch's native code reads when it is first imported, unless the environment says.

    On a CPU oneDNN keeps 128 kernels instead of 1,024, for a server meets every shape of a batch. Threads spin briefly:
    a core that spins is not free for a request.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    brief_spins()


def exempt_from_collection() -> None:
    """Collect Python's garbage once more, then leave what is in memory out of later collections.

    A full collection goes through every object of the models, and nothing else runs meanwhile: 0.3 s with the default
    model. Call it again whenever a model came or went.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def free_what_is_unused() -> None:
    """Collect Python's garbage, also among frozen objects: models hold themselves in circles."""
    frozen = gc.get_freeze_count()
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()


def leave(status: int) -> NoReturn:
    """End the process, whatever its threads are doing.

    A thread inside torch's native code aborts an interpreter that is taken down under it, and so may torch itself once
    the device has failed. One that reads a disk that does not answer would be waited for.
    """
    if status == ExitStatus.DEVICE_FAULT or any(
        thread is not threading.main_thread() and thread.is_alive() for thread in threading.enumerate()
    ):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
