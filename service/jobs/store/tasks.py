"""Work that a cancellation must not cut in two, and tasks that are to be over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from service.jobs.store.claims import ClaimLostError
from service.jobs.store.disk import STORAGE_ERRORS
from service.telemetry.logs import log_crash

T = TypeVar("T")


async def whole(work: Awaitable[T], *, hurry: Callable[[], None] = lambda: None) -> T:
    """Return the work's result. A cancellation takes effect once the work has ended, not in the middle of it.

    Args:
        hurry: called at a cancellation, to let the work end soon.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        hurry()
        await asyncio.wait({task})
        # Read, or the event loop takes what a silent database raises for a fault of the server.
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (*STORAGE_ERRORS, ClaimLostError)):
            log_crash("work that was cancelled failed", error)
        raise


async def cancelled(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks, those that are there, and return once they are over."""
    present = {task for task in tasks if task is not None}
    for task in present:
        task.cancel()
    if present:
        await asyncio.wait(present)
