"""Which artifacts a replica is to hold: all, but while they change their base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

#: Seconds for which what is left of a base that answers no more keeps its places: its last requests are under way.
LEFT_S = 30.0

#: By replica, the digests of the artifacts that it is to hold.
Placement = Mapping[str, frozenset[str]]


class Places:
    """Which replica is to hold what, as artifacts are loaded and change their base model. Belongs to the event loop.

    All artifacts that answer are on one base model. One on another base goes to a single replica first, which holds
    nothing else; the others follow once it answers. So no replica has two bases in memory, where there are several.
    """

    def __init__(self) -> None:
        self._coming: dict[str, str] = {}  # digests that are being loaded everywhere, and their bases
        self._base: str | None = None  # that answers
        self._ahead: tuple[str, str] | None = None  # a replica, and the base that it is alone with
        self._left_until = 0.0

    @contextmanager
    def coming(self, digest: str, base: str) -> Iterator[None]:
        """Give an artifact its places before it is loaded; others make room for it inside the block."""
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
            self._base, self._left_until = base, time.monotonic() + LEFT_S

    def of(self, loaded: Mapping[str, str], names: frozenset[str]) -> Placement:
        """Return what each replica is to hold, of the artifacts that are loaded or coming.

        Args:
            loaded: the base of each digest; names: of the replicas.
        """
        bases = {**loaded, **self._coming}
        if self._ahead is None or self._ahead[0] not in names:
            held = frozenset(d for d, base in bases.items() if base == self._base or d in self._coming)
            return dict.fromkeys(names, held)
        replica, base = self._ahead
        left = frozenset(digest for digest, its in bases.items() if its != base)
        over = not left or time.monotonic() > self._left_until
        if over if base == self._base else base not in bases.values():
            self._ahead = None
            return self.of(loaded, names)
        return dict.fromkeys(names, left) | {replica: frozenset(bases) - left}
