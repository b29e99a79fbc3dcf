"""Awaiting what a cancellation must not cut in two, and what must hold up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from service.engine import settle

T = TypeVar("T")


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
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            settle(future, error=error)
        else:
            settle(future, result=result)

    Thread(target=run, name="laplora-measure", daemon=True).start()
    return await asyncio.wrap_future(future)
