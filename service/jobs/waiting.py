"""How jobs wait: for their turn, for what passes, and for work that a cancellation must not cut in two."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeVar

from service.errors import ArtifactNotLoadedError, DeviceMemoryError, DrainingError, ShelfFullError, kind_of

T = TypeVar("T")

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0
#: A row that does not fit the device may fit once another process has left it. After so many tries it does not.
_DEVICE_MEMORY_TRIES = 4
#: For how long a server does not try a job again that it could not run: twice as long each time.
_FIRST_BACK_OFF_S = 5.0
_LONGEST_BACK_OFF_S = 300.0


class Turns:
    """Round robin: the member that has waited longest is next.

    A newcomer comes behind all who have waited since before the last turn, and before the one who had it. A member that
    leaves and comes back, again and again, never passes one that stays.
    """

    def __init__(self) -> None:
        self._taken = 0
        self._last: dict[str, float] = {}

    def meet(self, members: Collection[str]) -> None:
        """Take in who is there: newcomers get their place, who has left is forgotten."""
        self._last = {member: self._place(member) for member in members}

    def next(self, members: Iterable[str]) -> str:
        """Return which of these members is next; among newcomers the first."""
        return min(members, key=self._place)

    def take(self, member: str) -> None:
        """Let a member have its turn."""
        self._taken += 1
        self._last[member] = self._taken

    def _place(self, member: str) -> float:
        return self._last.get(member, self._taken - 0.5)


class Pauses:
    """The pauses of one job between its tries: exponential back-off with jitter."""

    def __init__(self) -> None:
        self.tried = 0

    def waits_out(self, error: Exception) -> bool:
        """Return whether what was refused is tried again: no room, or not ready or loaded; not the job's own fault."""
        if isinstance(error, DeviceMemoryError) and self.tried >= _DEVICE_MEMORY_TRIES:
            return False
        if isinstance(error, ArtifactNotLoadedError | ShelfFullError):
            return True
        return kind_of(error).status in (429, 503) and not isinstance(error, DrainingError)

    def next_s(self) -> float:
        """Return for how many seconds to wait now: longer each time, up to 15."""
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.tried, 10))
        self.tried += 1
        return longest * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """Begin anew: something went through."""
        self.tried = 0


class BackOffs:
    """The jobs that this server could not run while another may, by number, and until when it does not try them."""

    def __init__(self) -> None:
        self._tried: dict[int, tuple[int, float]] = {}

    def put(self, job: int) -> float:
        """Note that a job could not be run; return for how many seconds it is not tried."""
        tried, _ = self._tried.get(job, (0, 0.0))
        pause_s = min(_LONGEST_BACK_OFF_S, _FIRST_BACK_OFF_S * 2.0 ** min(tried, 10))
        self._tried[job] = (tried + 1, time.monotonic() + pause_s)
        return pause_s

    def now(self, unfinished: Collection[int]) -> list[int]:
        """Return the jobs that are not to be tried now; those that are not among the unfinished ones are forgotten."""
        self._tried = {job: tried for job, tried in self._tried.items() if job in unfinished}
        return [job for job, (_, until) in self._tried.items() if until > time.monotonic()]

    def forget(self, job: int) -> None:
        """Begin anew with a job: it runs."""
        self._tried.pop(job, None)


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
