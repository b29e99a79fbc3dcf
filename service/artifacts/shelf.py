"""The loaded artifacts: how many, how large, which one answers unasked, and which requests use which.

Taking an artifact off the shelf ends no lease: its memory goes with the last of them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from service.errors import ArtifactActiveError, ArtifactNotLoadedError, ShelfFullError

if TYPE_CHECKING:
    from service.scoring.model import Model


@dataclass(eq=False)
class Place:
    """One loaded artifact: requests that use it now, and the number of its last use, being loaded among them."""

    model: Model
    leases: int = 0
    used: int = 0

    @cached_property
    def size_bytes(self) -> int:
        """Its memory, without its base model."""
        return self.model.own_bytes

    @property
    def name(self) -> str:
        return self.model.artifact.name


class Shelf:
    """Loaded artifacts on one base model, by name; safe to use from several threads.

    Args:
        max_artifacts: most that are loaded.
        max_bytes: most bytes of adapters and posteriors, the base model not counted.
    """

    def __init__(self, *, max_artifacts: int, max_bytes: int) -> None:
        self._max_artifacts, self._max_bytes = max_artifacts, max_bytes
        self._places: dict[str, Place] = {}
        self._active: Place | None = None
        self._uses = itertools.count()
        self._lock = threading.Lock()

    @property
    def active(self) -> Model | None:
        """The one that answers where a request names none; None while the first one loads."""
        place = self._active
        return None if place is None else place.model

    @property
    def places(self) -> list[Place]:
        """The loaded artifacts, the active one first."""
        with self._lock:
            return sorted(self._places.values(), key=lambda place: place is not self._active)

    def find(self, name: str) -> Model | None:
        """Return the loaded artifact of this name, or of this folder's name."""
        with self._lock:
            place = self._place(name)
            return None if place is None else place.model

    @contextmanager
    def lease(self, name: str | None) -> Iterator[Model]:
        """Yield the model of a loaded artifact, None for the active one. Inside the block it stays in memory.

        Raises:
            ArtifactNotLoadedError: it is not loaded.
        """
        with self._lock:
            place = self._active if name is None else self._place(name)
            if place is None:
                raise ArtifactNotLoadedError("the artifact is not loaded: POST /artifacts/{name}/load does it")
            place.leases += 1
            place.used = next(self._uses)
        try:
            yield place.model
        finally:
            with self._lock:
                place.leases -= 1

    def put(self, model: Model, *, activate: bool, former: Model | None = None) -> list[str]:
        """Add an artifact, in the place of one of the same name, and return the names of those that went for it.

        The least recently used of the idle ones go, never the active one. One that is activated also sends away all on
        another base model, and as a last resort the one that was active before.

        Args:
            former: that it is a new version of; None: of nothing.

        Raises:
            ArtifactNotLoadedError: the former version is not on the shelf any more; nothing has changed.
            ShelfFullError: it does not fit beside those in use; nothing has changed.
        """
        place = Place(model)
        with self._lock:
            if former is not None:
                self._check_there(former)
            gone = self._to_make_room(place, activate=activate)
            for name in gone:
                del self._places[name]
            place.used = next(self._uses)
            replaced = self._places.get(place.name)
            self._places[place.name] = place
            if activate or replaced is self._active:
                self._active = place
            return gone

    def activate(self, name: str) -> bool:
        """Make a loaded artifact the active one; return whether it is loaded."""
        with self._lock:
            place = self._place(name)
            self._active = place or self._active
            return place is not None

    def remove(self, name: str) -> Model:
        """Take an artifact off the shelf and return its model.

        Raises:
            ArtifactNotLoadedError: it is not loaded.
            ArtifactActiveError: it is the active one.
        """
        with self._lock:
            place = self._place(name)
            if place is None:
                raise ArtifactNotLoadedError("the artifact is not loaded: GET /artifacts lists those that are")
            if place is self._active:
                raise ArtifactActiveError(f"{place.name!r} is the active artifact: activate another one first")
            del self._places[place.name]
            return place.model

    def check_room(self) -> None:
        """Check that one more artifact could be added, before it is loaded.

        Raises:
            ShelfFullError: all that are loaded are in use.
        """
        with self._lock:
            idle = [p for p in self._places.values() if p.leases == 0 and p is not self._active]
            if len(self._places) - len(idle) + 1 > self._max_artifacts:
                raise self._full(f"{len(self._places)} are loaded and in use")

    def check_fits(self, model: Model, former: Model) -> None:
        """Check that a new version could take the former one's place.

        Raises:
            ArtifactNotLoadedError, ShelfFullError: as ``put``.
        """
        with self._lock:
            self._check_there(former)
            self._to_make_room(Place(model), activate=False)

    def _place(self, name: str) -> Place | None:
        by_folder = (p for p in self._places.values() if p.model.artifact.path.name == name)
        return self._places.get(name) or next(by_folder, None)

    def _check_there(self, former: Model) -> None:
        place = self._places.get(former.artifact.name)
        if place is None or place.model is not former:
            raise ArtifactNotLoadedError("the artifact was unloaded while its new version was made: load it, try again")

    def _to_make_room(self, place: Place, *, activate: bool) -> list[str]:
        others = [p for p in self._places.values() if p.name != place.name]
        elsewhere = [p for p in others if activate and p.model.base is not place.model.base]
        kept = [p for p in others if p not in elsewhere]
        former = [p for p in kept if p is self._active]
        idle = sorted((p for p in kept if p.leases == 0 and p not in former), key=lambda p: p.used)
        gone: list[Place] = []
        for candidate in [*idle, *(former if activate else [])]:
            if self._fits([p for p in kept if p not in gone] + [place]):
                break
            gone.append(candidate)
        left = [p for p in kept if p not in gone] + [place]
        if not self._fits(left):
            size = sum(p.size_bytes for p in left)
            raise self._full(f"with those in use there would be {len(left)} of {size} bytes", got=size)
        return [p.name for p in [*elsewhere, *gone]]

    def _fits(self, places: Sequence[Place]) -> bool:
        return len(places) <= self._max_artifacts and sum(p.size_bytes for p in places) <= self._max_bytes

    def _full(self, what: str, got: int | None = None) -> ShelfFullError:
        return ShelfFullError(
            f"no room for another artifact: {what}, max_artifacts is {self._max_artifacts} and max_artifact_bytes "
            f"{self._max_bytes}: unload one, or wait until its requests are answered",
            limit=self._max_artifacts if got is None else self._max_bytes,
            got=got,
        )
