"""How jobs wait: for their turn, and for what passes."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

from service.errors import ArtifactNotLoadedError, DeviceMemoryError, DrainingError, ShelfFullError, kind_of

#: Longest pause of ``Pauses``, in first ones.
_LONGEST_PAUSE = 60
#: A row that does not fit the device may fit once another process has left it. After so many tries it does not.
_DEVICE_MEMORY_TRIES = 4


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
    """The pauses of one job between its tries: exponential back-off with jitter, up to ``longest_s`` seconds."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self.tried = 0

    def waits_out(self, error: Exception) -> bool:
        """Return whether what was refused is tried again: no room, or not ready or loaded; not the job's own fault."""
        if isinstance(error, DeviceMemoryError) and self.tried >= _DEVICE_MEMORY_TRIES:
            return False
        if isinstance(error, ArtifactNotLoadedError | ShelfFullError):
            return True
        return kind_of(error).status in (429, 503) and not isinstance(error, DrainingError)

    def next_s(self) -> float:
        """Return for how many seconds to wait now: longer each time."""
        pause_s = self._longest_s * min(1.0, 2.0 ** min(self.tried, 10) / _LONGEST_PAUSE)
        self.tried += 1
        return pause_s * random.uniform(0.5, 1.0)

    def over(self) -> None:
        """Begin anew: something went through."""
        self.tried = 0
