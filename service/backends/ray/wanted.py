"""The artifacts that a scorer loads for the ingress, and how soon it retries those that failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Seconds before a load that failed is tried again: twice as long each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0


class Wanted:
    """The loads of wanted artifacts, by digest, one at a time. Safe to use from several threads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._running = False
        self._failed: dict[str, tuple[float, float]] = {}  # its last pause, and when that ends

    def begin(self, digest: str) -> bool:
        """Return whether a load is to begin now; it then runs until ``end``, and no other begins."""
        with self._lock:
            _, until = self._failed.get(digest, (0.0, 0.0))
            if self._running or self._clock() < until:
                return False
            self._running = True
            return True

    def end(self, digest: str, *, loaded: bool) -> None:
        with self._lock:
            now = self._clock()
            self._running = False
            pause_s, _ = self._failed.pop(digest, (0.0, 0.0))
            # Failures without a request since then are forgotten.
            self._failed = {one: failure for one, failure in self._failed.items() if now - failure[1] < LONGEST_PAUSE_S}
            if not loaded:
                pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * pause_s))
                self._failed[digest] = (pause_s, now + pause_s)
