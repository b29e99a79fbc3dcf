"""The artifacts that a scorer holds, by digest: loaded when one is wanted, and let go when nobody uses it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import LoadStuckError, ShelfFullError

if TYPE_CHECKING:
    from laplora.predictor import Predictor

#: Seconds after which an artifact that is neither wanted nor used goes, and an ingress that is not heard of is gone:
#: two of an update may want different ones.
UNWANTED_S = 30.0
#: Seconds between two looks whether the load that others wait for has taken too long.
_TURN_S = 0.5


class InUseError(ShelfFullError):
    """As many artifacts are in use as may be loaded; one of them goes once its requests are answered."""


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
        most_load_s: seconds of a load after which no other waits for its end.
        on_load: called once one was loaded, and others may have gone for it, in the thread that loaded it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        most: int,
        most_bytes: int,
        most_load_s: float = math.inf,
        on_load: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._most_bytes, self._most_load_s = most, most_bytes, most_load_s
        self._on_load, self._clock = on_load, clock
        self._held: dict[str, _Held] = {}
        self._wants: dict[str, tuple[float, frozenset[str]]] = {}  # of each ingress: its last word, and when it came
        self._sizes: dict[str, int] = {}  # of all that were ever loaded
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._load_began: float | None = None

    @property
    def digests(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._held)

    @property
    def predictors(self) -> list[Predictor]:
        with self._lock:
            return [one.predictor for one in self._held.values()]

    @property
    def _wanted(self) -> frozenset[str]:
        return frozenset().union(*(digests for _, digests in self._wants.values()))

    @property
    def has_room(self) -> bool:
        """Whether one more finds a place without a wanted one going for it."""
        with self._lock:
            wanted = self._wanted
            return sum(one.leases > 0 or digest in wanted for digest, one in self._held.items()) < self._most

    def lease_if_there(self, digest: str) -> AbstractContextManager[Predictor] | None:
        """Return a lease, to be entered at once, of a digest that is loaded; None where it is not. Never loads."""
        held = self._take(digest)
        return None if held is None else self._used(held)

    @contextmanager
    def lease(self, digest: str, load: Callable[[], Predictor], *, spare_wanted: bool = False) -> Iterator[Predictor]:
        """Yield the predictor of a digest, loaded now if it is not; inside the block it stays.

        Args:
            spare_wanted: no wanted one goes for it.

        Raises:
            InUseError: it does not fit beside those in use, or those wanted. Nothing was loaded, unless it never was
                before, so that its size was not known.
            ShelfFullError: it does not fit alone.
            LoadStuckError: another load takes longer than it may, and still runs.
            Exception: what ``load`` raises.
        """
        held = self._take(digest)
        if held is None:
            with self._turn_to_load():
                held = self._take(digest)  # somebody else may have loaded it meanwhile
                loads = held is None
                if held is None:
                    held = self._put(self._loaded(digest, load, spare_wanted), spare_wanted)
            with self._used(held) as predictor:
                if loads:
                    self._on_load()
                yield predictor
        else:
            with self._used(held) as predictor:
                yield predictor

    @contextmanager
    def _turn_to_load(self) -> Iterator[None]:
        while not self._loading.acquire(timeout=_TURN_S):
            began = self._load_began
            if began is not None and self._clock() - began > self._most_load_s:
                raise LoadStuckError("another load takes longer than load_timeout_s, and no other can begin")
        try:
            yield
        finally:
            self._loading.release()

    @contextmanager
    def _used(self, held: _Held) -> Iterator[Predictor]:
        try:
            yield held.predictor
        finally:
            with self._lock:
                held.leases -= 1

    def keep(self, wanted: Collection[str], *, by: str = "") -> bool:
        """Note what an ingress wants, and let go of what has been neither wanted nor used for ``UNWANTED_S``.

        Returns:
            Whether any went.
        """
        with self._lock:
            now = self._clock()
            self._wants[by] = (now, frozenset(wanted))
            self._wants = {one: wanted_at for one, wanted_at in self._wants.items() if now - wanted_at[0] <= UNWANTED_S}
            still = self._wanted
            left = {
                digest: held
                for digest, held in self._held.items()
                if digest in still or held.leases > 0 or now - held.used <= UNWANTED_S
            }
            gone, self._held = len(left) < len(self._held), left
            return gone

    def leave_other_bases(self, base: object, *, spare_wanted: bool = False) -> bool:
        """Let go of all artifacts that are not on a base model; return whether any on it are left.

        Args:
            base: as a manifest has it; spare_wanted: no wanted one goes.

        Raises:
            InUseError: one of them is in use, or wanted; nothing has gone.
        """
        with self._lock:
            wanted = self._wanted if spare_wanted else ()
            others = {d: one for d, one in self._held.items() if one.predictor.artifact.manifest.base != base}
            if stay := [digest for digest, one in others.items() if one.leases > 0 or digest in wanted]:
                raise InUseError(f"{len(stay)} artifacts on another base model are in use", limit=0, got=len(stay))
            for digest in others:
                del self._held[digest]
            return bool(self._held)

    def _loaded(self, digest: str, load: Callable[[], Predictor], spare_wanted: bool) -> Predictor:
        """Return what ``load`` does; errors as of ``_check_room``, before anything loads."""
        with self._lock:
            stay = [one for d, one in self._held.items() if one.leases > 0 or (spare_wanted and d in self._wanted)]
            self._check_room(stay, self._sizes.get(digest, 0))
        self._load_began = self._clock()
        try:
            predictor = load()
        finally:
            self._load_began = None
        with self._lock:
            self._sizes[digest] = predictor.own_bytes
        return predictor

    def _check_room(self, stay: Collection[_Held], size: int) -> None:
        """Return if one more of a size fits beside what stays.

        Raises:
            InUseError: it does not; ShelfFullError: it does not fit alone.
        """
        if size > self._most_bytes:
            raise ShelfFullError(f"an artifact of {size} bytes does not fit", limit=self._most_bytes, got=size)
        if len(stay) >= self._most:
            what = f"no room for another artifact: {len(stay)} are in use"
            raise InUseError(what, limit=self._most, got=len(stay) + 1)
        total = sum(one.predictor.own_bytes for one in stay) + size
        if total > self._most_bytes:
            what = f"no room for another artifact: with the {len(stay)} that are in use there would be {total} bytes"
            raise InUseError(what, limit=self._most_bytes, got=total)

    def _take(self, digest: str) -> _Held | None:
        with self._lock:
            held = self._held.get(digest)
            if held is not None:
                held.leases += 1
                held.used = self._clock()
            return held

    def _put(self, predictor: Predictor, spare_wanted: bool) -> _Held:
        """Add a predictor with one lease; idle ones go for it, unwanted ones first, then by their last use."""
        with self._lock:
            new = _Held(predictor, leases=1, used=self._clock())
            kept = dict(self._held)
            idle = [d for d, one in kept.items() if one.leases == 0 and not (spare_wanted and d in self._wanted)]
            idle.sort(key=lambda digest: (digest in self._wanted, kept[digest].used))
            while not self._fits([*kept.values(), new]):
                if not idle:
                    self._check_room(kept.values(), predictor.own_bytes)
                del kept[idle.pop(0)]
            self._held = {**kept, predictor.artifact.digest: new}
            return new

    def _fits(self, held: Collection[_Held]) -> bool:
        return len(held) <= self._most and sum(one.predictor.own_bytes for one in held) <= self._most_bytes
