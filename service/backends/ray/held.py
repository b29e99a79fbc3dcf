"""The artifacts that a scorer holds, by digest: loaded when one is wanted, and let go when nobody uses it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import ShelfFullError

if TYPE_CHECKING:
    from laplora.predictor import Predictor

#: Seconds after which an artifact that nobody wants any more goes: two ingresses of an update may want different ones.
UNWANTED_S = 30.0


@dataclass(eq=False)
class _Held:
    predictor: Predictor
    leases: int = 0
    used: float = 0.0


class Held:
    """Loaded artifacts, bounded in number and bytes. Safe to use from several threads; one load at a time.

    One that is in use is never evicted: a new one is refused instead.

    Args:
        most, most_bytes: of artifacts, and of their adapters and posteriors.
        clock: monotonic seconds.
    """

    def __init__(self, *, most: int, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._most_bytes, self._clock = most, most_bytes, clock
        self._held: dict[str, _Held] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()

    @property
    def digests(self) -> frozenset[str]:
        """Of what is loaded."""
        with self._lock:
            return frozenset(self._held)

    @property
    def predictors(self) -> list[Predictor]:
        """What is loaded."""
        with self._lock:
            return [one.predictor for one in self._held.values()]

    @contextmanager
    def lease(self, digest: str, load: Callable[[], Predictor]) -> Iterator[Predictor]:
        """Yield the predictor of a digest, loaded now if it is not; inside the block it stays.

        Raises:
            ShelfFullError: it does not fit beside those in use.
            Exception: what ``load`` raises.
        """
        held = self._take(digest)
        if held is None:
            with self._loading:
                held = self._take(digest)  # somebody else may have loaded it meanwhile
                if held is None:
                    held = self._put(load())
        try:
            yield held.predictor
        finally:
            with self._lock:
                held.leases -= 1

    def keep(self, wanted: Collection[str]) -> None:
        """Note what is wanted, and let go of what has been neither wanted nor used for ``UNWANTED_S``."""
        with self._lock:
            now = self._clock()
            for digest, held in list(self._held.items()):
                if digest in wanted:
                    held.used = now
                elif held.leases == 0 and now - held.used > UNWANTED_S:
                    del self._held[digest]

    def _take(self, digest: str) -> _Held | None:
        with self._lock:
            held = self._held.get(digest)
            if held is not None:
                held.leases += 1
                held.used = self._clock()
            return held

    def _put(self, predictor: Predictor) -> _Held:
        """Add a predictor with one lease; the least recently used idle ones go for it."""
        with self._lock:
            new = _Held(predictor, leases=1, used=self._clock())
            kept = dict(self._held)
            idle = sorted((d for d, one in kept.items() if one.leases == 0), key=lambda digest: kept[digest].used)
            while not self._fits([*kept.values(), new]):
                if not idle:
                    size = sum(one.predictor.own_bytes for one in kept.values()) + predictor.own_bytes
                    raise ShelfFullError(
                        f"no room for another artifact: with the {len(kept)} in use there would be {size} bytes",
                        limit=self._most_bytes,
                        got=size,
                    )
                del kept[idle.pop(0)]
            self._held = {**kept, predictor.artifact.digest: new}
            return new

    def _fits(self, held: Collection[_Held]) -> bool:
        return len(held) <= self._most and sum(one.predictor.own_bytes for one in held) <= self._most_bytes
