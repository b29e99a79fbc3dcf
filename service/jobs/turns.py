"""Round robin: whoever has waited longest is next. Pure: no clock of the wall, no lock.

A newcomer comes behind all who have waited since before the last turn, and before the one who had it. So a member that
leaves and comes back, again and again, never passes one that stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


class Turns:
    """Whose turn it is among members, by name."""

    def __init__(self) -> None:
        self._taken = 0
        self._last: dict[str, float] = {}

    def meet(self, members: Collection[str]) -> None:
        """Take in who is there: newcomers get their place, who has left is forgotten."""
        self._last = {member: self._last.get(member, self._taken - 0.5) for member in members}

    def next(self, members: Iterable[str]) -> str:
        """Return which of these members is next; among newcomers the first."""
        return min(members, key=lambda member: self._last.get(member, self._taken - 0.5))

    def take(self, member: str) -> None:
        """Let a member have its turn."""
        self._taken += 1
        self._last[member] = self._taken
