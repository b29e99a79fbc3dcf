"""Loads that may hang: each in a thread of its own, given up after a time, its result then dropped.

A thread cannot be ended, and nobody can tell what memory it holds. So no load begins before one that was given up ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from service.errors import LoadStuckError, LoadTimeoutError
from service.telemetry.logs import logger
from service.threads import forget_frames

T = TypeVar("T")


class BoundedLoads:
    """Runs loads, one at a time: the caller sees to that.

    Args:
        limit_s: seconds that one may take.
        on_stuck: called with whether a load that was given up still runs, whenever that changes.

    Attributes:
        stuck: name of the artifact whose load was given up and still runs; None where there is none.
    """

    def __init__(self, limit_s: float, on_stuck: Callable[[bool], None]) -> None:
        self.stuck: str | None = None
        self._limit_s = limit_s
        self._on_stuck = on_stuck
        self._lock = threading.Lock()

    def run(self, name: str, load: Callable[[Callable[[], None]], T]) -> T:
        """Return what the load of an artifact returns; it is given a function that ends it if it was given up.

        Raises:
            LoadTimeoutError: it took too long.
            LoadStuckError: an earlier one did, and still runs.
            Exception: whatever the load raises.
        """
        if self.stuck is not None:
            raise LoadStuckError(
                f"the load of {self.stuck!r} was given up after {self._limit_s:g} s and still runs: restart the "
                "server, or wait for its end; what is loaded can be activated"
            )
        future: Future[T] = Future()
        threading.Thread(target=self._work, args=(name, load, future), name="laplora-load", daemon=True).start()
        try:
            return future.result(self._limit_s)
        except TimeoutError:
            with self._lock:
                if not future.cancel():  # it ended just now, or the TimeoutError is its own
                    return future.result()
                self.stuck = name
                self._on_stuck(True)
        logger.error("a load was given up", extra={"event": "load_given_up", "artifact": name})
        raise LoadTimeoutError(
            f"the artifact did not load within load_timeout_s ({self._limit_s:g}): nothing has changed; until that "
            "load ends, no other can begin"
        )

    def _work(self, name: str, load: Callable[[Callable[[], None]], T], future: Future[T]) -> None:
        def go_on() -> None:
            if future.cancelled():
                raise LoadTimeoutError("the load was given up")

        try:
            settle = partial(future.set_result, load(go_on))
        except BaseException as error:
            forget_frames(error)  # they hold what was loaded
            settle = partial(future.set_exception, error)
        with self._lock:
            if not future.cancelled():
                settle()
                return
            del settle  # its memory goes before another load may begin
            self.stuck = None
            self._on_stuck(False)
        logger.warning("a load that was given up has ended", extra={"event": "load_ended_late", "artifact": name})
