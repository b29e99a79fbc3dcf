"""Awaiting what a cancellation must not cut in two, and what must hold up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from service.errors import DeadlineError
from service.threads import in_daemon_thread

T = TypeVar("T")


class IdleUploadError(DeadlineError):
    """An upload brought nothing for too long."""


async def steadily(body: AsyncIterator[bytes], idle_s: float) -> AsyncIterator[bytes]:
    """Yield what comes of an upload.

    Raises:
        IdleUploadError: nothing came for ``idle_s`` seconds; the time between two asks for more is not counted.
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(body, None)
        except TimeoutError:
            raise IdleUploadError(
                f"nothing of the upload came for job_upload_idle_s ({idle_s:g} s): send it without pauses"
            ) from None
        if chunk is None:
            return
        yield chunk


async def whole(work: Awaitable[T]) -> T:
    """Return the work's result; a cancellation is heeded once it has ended, not in the middle of it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def cancelled(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    """Cancel tasks, those that are there, and return once they are over."""
    found = {task for task in tasks if task is not None}
    for task in found:
        task.cancel()
    if found:
        await asyncio.wait(found)


async def in_thread(function: Callable[[], T]) -> T:
    """Return the function's result; its thread can hold up neither the event loop nor the process's exit."""
    return await asyncio.wrap_future(in_daemon_thread("laplora-measure", function))
