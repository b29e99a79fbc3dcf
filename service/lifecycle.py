"""How far the server is from leaving: told by whoever serves it, read by whoever answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence


class Lifecycle:
    """The steps of leaving, in their order: leave, drain, stop. Each includes those before it, and may come again.

    Args:
        leave_s: seconds in which the process leaves once nothing is answered any more.
        on_drain, on_stop: called with each step, in order.

    Attributes:
        leave_s: as given.
        leaving: readiness fails, because the server is about to stop; requests are answered as before.
        draining: no new requests are taken.
        open_requests: HTTP requests that are being answered.
        leave_by: ``time.monotonic`` seconds by which the process should have left; infinity before ``stop``.
    """

    def __init__(
        self,
        *,
        leave_s: float,
        on_drain: Sequence[Callable[[], None]] = (),
        on_stop: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.leave_s, self._on_drain, self._on_stop = leave_s, on_drain, on_stop
        self.leaving = False
        self.draining = False
        self.open_requests = 0
        self.leave_by = math.inf

    def leave(self) -> None:
        """Let readiness fail, so that requests go elsewhere; those that come all the same are still answered."""
        self.leaving = True

    def drain(self) -> None:
        """Take no new requests; those in flight are still answered."""
        self.leave()
        self.draining = True
        for tell in self._on_drain:
            tell()

    def stop(self) -> None:
        """Answer what is left with 503; from now on ``leave_by`` counts."""
        self.leave_by = min(self.leave_by, time.monotonic() + self.leave_s)
        self.drain()
        for tell in self._on_stop:
            tell()

    @property
    def left_s(self) -> float:
        """Seconds until ``leave_by``, at least 0."""
        return max(0.0, self.leave_by - time.monotonic())
