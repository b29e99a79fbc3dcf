"""Which replica is to hold which artifacts, where one does not hold them all: rendezvous hashing with bounded room.

Each artifact ranks the replicas by a hash of both names (Thaler and Ravishankar, IEEE/ACM Transactions on Networking
1998) and takes the first with room. So a replica that comes or goes moves few artifacts but its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

#: Seconds for which what is left of a base that answers no more keeps its places: its last requests are under way.
LEFT_S = 30.0

#: By replica, the digests of the artifacts that it is to hold.
Placement = Mapping[str, frozenset[str]]


class Places:
    """Which replica is to hold what, as artifacts are loaded and change their base model. Belongs to the event loop.

    All artifacts that answer are on one base model. One on another base goes to a single replica first, which holds
    nothing else; the others follow once it answers. So no replica has two bases in memory, where there are several.

    Args:
        most: artifacts at a replica; clock: monotonic seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._used: dict[str, float] = {}  # when each digest was asked for last
        self._coming: dict[str, str] = {}  # digests that are being loaded everywhere, and their bases
        self._base: str | None = None  # that answers
        self._ahead: tuple[str, str] | None = None  # a replica, and the base that it is alone with
        self._left_until = 0.0

    def used(self, digest: str) -> None:
        """Note that an artifact is asked for."""
        self._used[digest] = self._clock()

    @contextmanager
    def coming(self, digest: str, base: str) -> Iterator[None]:
        """Give an artifact its places before it is loaded; others make room for it inside the block."""
        self.used(digest)
        self._coming[digest] = base
        try:
            yield
        except BaseException:
            if self._ahead is not None and self._ahead[1] != self._base:
                self._ahead = None
            raise
        finally:
            del self._coming[digest]

    def go_ahead(self, base: str, names: Collection[str], cost: Callable[[str], object]) -> bool:
        """Let one replica, the one of least cost, be alone with a coming base; return whether it is to hold both.

        It is to hold both where it is the only one: its base answers until the new one is loaded.
        """
        if self._base in (None, base):
            return False
        if len(names) == 1:
            self._ahead = None
            return True
        if self._ahead is None or self._ahead[0] not in names or self._ahead[1] != base:
            self._ahead = (min(names, key=cost), base)  # type: ignore[arg-type, type-var]
        return False

    @property
    def ahead(self) -> str | None:
        """The replica that is alone with a base, if one is."""
        return None if self._ahead is None else self._ahead[0]

    def answers(self, base: str) -> None:
        """Note which base answers from now on. From any thread."""
        if base != self._base:
            self._base, self._left_until = base, self._clock() + LEFT_S

    def of(self, loaded: Mapping[str, str], names: frozenset[str]) -> Placement:
        """Return what each replica is to hold, of the artifacts that are loaded or coming.

        Args:
            loaded: the base of each digest; names: of the replicas.
        """
        bases = {**loaded, **self._coming}
        if self._ahead is None or self._ahead[0] not in names:
            return self._part({d for d, base in bases.items() if base == self._base or d in self._coming}, names)
        replica, base = self._ahead
        left = {digest for digest, its in bases.items() if its != base}
        over = not left or self._clock() > self._left_until
        if over if base == self._base else base not in bases.values():
            self._ahead = None
            return self.of(loaded, names)
        return {**self._part(left, names - {replica}), **self._part(bases.keys() - left, frozenset({replica}))}

    def _part(self, digests: Collection[str], names: frozenset[str]) -> Placement:
        """Return the places of some artifacts on some replicas: of too many, what comes and was asked for last."""
        room = max(1, len(names)) * self._most
        if len(digests) > room:
            digests = sorted(digests, key=lambda one: (one in self._coming, self._used.get(one, 0.0), one))[-room:]
        return placed(digests, names, self._most)


def likeliest(digests: Collection[str], replica: str, most: int) -> list[str]:
    """Return the artifacts that are likeliest to have a place at a replica, which does not know the others."""
    return [*digests] if len(digests) <= most else sorted(digests, key=lambda one: _rank(one, replica))[:most]


def placed(digests: Collection[str], replicas: Collection[str], most: int) -> Placement:
    """Return the artifacts that each replica is to hold, by its name: at most ``most``, and as many copies as fit.

    Every artifact has a place before one has a second, so that none is without as long as there is room for all.
    """
    return _placed(frozenset(digests), frozenset(replicas), most)


@lru_cache(maxsize=16)
def _placed(digests: frozenset[str], replicas: frozenset[str], most: int) -> Placement:
    if len(digests) <= most:
        return dict.fromkeys(replicas, digests)
    # Once a replica is full or has an artifact, it stays so: each order is gone through once.
    ranked = {digest: iter(_ranked(digest, replicas)) for digest in sorted(digests)}
    held: dict[str, set[str]] = {replica: set() for replica in replicas}
    for _ in replicas:
        for digest, order in ranked.items():
            for replica in order:
                if len(held[replica]) < most:
                    held[replica].add(digest)
                    break
    return {replica: frozenset(those) for replica, those in held.items()}


@lru_cache(maxsize=1024)
def _ranked(digest: str, replicas: frozenset[str]) -> list[str]:
    return sorted(replicas, key=lambda replica: _rank(digest, replica))


def _rank(digest: str, replica: str) -> bytes:
    return hashlib.sha256(f"{digest} {replica}".encode()).digest()
