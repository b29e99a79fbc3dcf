"""Tickets that wait for room for their artifact: of those of one artifact one asks, and the others follow it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

#: Seconds before the one that asks does so again: twice as long each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class InLine:
    """Who asks for which artifact. Belongs to the event loop."""

    def __init__(self) -> None:
        self._asking: dict[str, asyncio.Event] = {}  # by digest; set once the ticket that asks has its answer

    @contextmanager
    def of(self, digest: str) -> Iterator[Callable[[float], Awaitable[None]]]:
        """Yield what a ticket awaits before it asks again: its turn, for so many seconds at most."""
        mine: asyncio.Event | None = None
        pause_s = FIRST_PAUSE_S

        async def turn(left_s: float) -> None:
            nonlocal mine, pause_s
            if mine is None and (other := self._asking.get(digest)) is not None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(other.wait(), left_s)
                return
            if mine is None:
                mine = self._asking[digest] = asyncio.Event()
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

        try:
            yield turn
        finally:
            if mine is not None:
                del self._asking[digest]
                mine.set()
