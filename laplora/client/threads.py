"""Waiting and several calls at a time, by threads. ``tasks`` has the same functions for the asynchronous client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_thread = threading.local()


def sleep(seconds: float) -> None:
    """Wait; raise CancelledError where this is a call of ``each``, and another of its calls failed meanwhile."""
    stopped: threading.Event | None = getattr(_thread, "stopped", None)
    if stopped is None:
        time.sleep(seconds)
    elif stopped.wait(seconds):
        raise CancelledError


def each(call: Callable[[Item], Result], items: Iterable[Item], in_flight: int) -> list[Result]:
    """Return what ``call`` returns for each item, in order, from ``in_flight`` calls at a time.

    After a failure or Ctrl-C no other call starts, and those that ``sleep`` end. A request under way is waited for.
    """
    stopped = threading.Event()

    def one(item: Item) -> Result:
        _thread.stopped = stopped
        return call(item)

    with ThreadPoolExecutor(in_flight) as pool:
        futures = [pool.submit(one, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures if future in done]  # all of them, or one raises
