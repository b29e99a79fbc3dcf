"""Work that a cancellation must not cut in two, and tasks that are to be over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

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
        raise


async def cancelled(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks, those that are there, and return once they are over."""
    present = {task for task in tasks if task is not None}
    for task in present:
        task.cancel()
    if present:
        await asyncio.wait(present)
