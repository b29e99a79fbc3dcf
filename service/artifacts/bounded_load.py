"""Loads that may hang: each in a thread of its own, given up after a time, its result then dropped.

A thread cannot be ended. What a load that was given up holds in memory nobody can tell, so no other begins before it
has ended: there is never more than one set of weights that the shelf does not count.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from service.errors import LoadStuckError, LoadTimeoutError
from service.telemetry.logs import logger

T = TypeVar("T")


class BoundedLoads:
    """Runs loads, one at a time: the caller sees to that.

    Args:
        limit_s: seconds that one may take.
        on_stuck: called with whether a load that was given up still runs, whenever that changes.
    """

    def __init__(self, limit_s: float, on_stuck: Callable[[bool], None] = lambda stuck: None) -> None:
        self._limit_s = limit_s
        self._on_stuck = on_stuck
        self._lock = threading.Lock()
        self._stuck: str | None = None

    @property
    def stuck(self) -> str | None:
        """Name of the artifact whose load was given up and still runs; None where there is none."""
        return self._stuck

    def run(self, name: str, load: Callable[[Callable[[], None]], T]) -> T:
        """Return what a load returns.

        Args:
            name: of the artifact.
            load: is given a function to call between its steps, which ends it if it was given up.

        Raises:
            LoadTimeoutError: it took too long.
            LoadStuckError: an earlier one did, and still runs.
            Exception: whatever the load raises.
        """
        if self._stuck is not None:
            raise LoadStuckError(
                f"the load of {self._stuck!r} was given up after {self._limit_s:g} s and still runs: restart the "
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
                self._stuck = name
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

        result: list[T] = []
        failure: BaseException | None = None
        try:
            result.append(load(go_on))
        except BaseException as error:
            failure = error
        with self._lock:
            if not future.cancelled():
                if failure is None:
                    future.set_result(result[0])
                else:
                    future.set_exception(failure)
                return
            # Its memory goes before another load may begin.
            result.clear()
            failure = None
            self._stuck = None
            self._on_stuck(False)
        logger.warning("a load that was given up has ended", extra={"event": "load_ended_late", "artifact": name})
