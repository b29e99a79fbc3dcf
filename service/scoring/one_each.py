"""Threads that each caller has one of at a time: who asks for much waits for itself, and keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class OneEach:
    """Runs work on threads, one piece for each caller at a time, in its order. For one event loop.

    Whoever comes waits for one piece of each other caller at most, however many those have waiting.

    Args:
        threads: that run the work; it is stopped by whoever made it.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, caller: str, work: Callable[[], T]) -> T:
        """Return what ``work()`` returns.

        Work that nobody awaits any more does not begin. What has begun runs on, and its caller's next piece waits for
        its end.

        Raises:
            Exception: whatever the work raises.
        """
        turn = self._turns.setdefault(caller, asyncio.Semaphore(1))
        loop = asyncio.get_running_loop()
        await turn.acquire()

        def end_turn(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(turn.release)

        try:
            future = self._threads.submit(work)
        except BaseException:
            turn.release()
            raise
        future.add_done_callback(end_turn)
        return await asyncio.wrap_future(future)
