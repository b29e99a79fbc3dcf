"""Threads for what would keep the event loop: a few for each kind of work, so that no kind waits for another."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


def forget_frames(error: BaseException) -> None:
    """Let go of the frames of an exception, and of those it was raised from; ``frames_of`` still has their lines."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is one for one in seen):
        cause.__dict__["_lines"] = frames_of(cause)
        cause.__traceback__ = None
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__


def frames_of(error: BaseException) -> list[str]:
    """Return where an exception was raised, a line for each frame: of each thread that it came through, in order."""
    frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    return [*error.__dict__.get("_lines", ()), *frames]


def settle(future: Future[Any], *, result: Any = None, error: BaseException | None = None) -> None:
    """Give a future its result or error, unless someone gave it up before."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def in_daemon_thread(name: str, function: Callable[[], T]) -> Future[T]:
    """Return a future of ``function()``, run in a thread of its own that cannot hold up the process's exit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:
            forget_frames(error)
            settle(future, error=error)
        else:
            settle(future, result=result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Threads:
    """Makes the server's threads by kind of work, and stops them all."""

    def __init__(self) -> None:
        self._pools: list[ThreadPoolExecutor] = []

    def pool(self, name: str, most: int) -> ThreadPoolExecutor:
        """Return up to ``most`` threads for one kind of work; the first begins with the first work."""
        pool = ThreadPoolExecutor(max_workers=most, thread_name_prefix=f"laplora-{name}")
        self._pools.append(pool)
        return pool

    def stop(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)


class OneAtATime:
    """Lets one piece of work in at a time, and of each caller one wait for that. For one event loop.

    Args:
        threads: for no other kind of work: who has its turn waits for nobody there.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._one = asyncio.Lock()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[Callable[[Callable[[], T]], Awaitable[T]]]:
        """Wait for a caller's turn, which lasts as long as the block, and yield what runs work on a thread."""
        async with self._turns.setdefault(caller, asyncio.Lock()), self._one:
            yield partial(asyncio.get_running_loop().run_in_executor, self._threads)


class OneEach:
    """Runs work on threads, one piece for each caller at a time, in its order. For one event loop.

    A caller waits for at most one piece of each other caller, however many those have waiting.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, caller: str, work: Callable[[], T]) -> T:
        """Return what ``work()`` returns, or raise what it raises.

        Work that nobody awaits any more does not begin. A piece that has begun runs on, and its caller's next piece
        waits for its end.
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
