"""Artifacts of the root that are not loaded: verified once, and again only when a file of theirs has changed.

A folder is the same while each of its files has the same device, number, size, and times of its last change, and no
file came or went. A folder that has only just changed is read again at the next look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laplora.errors import LaploraError

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

#: Seconds for which a folder must have been seen unchanged before what is read of it is kept. FAT has the coarsest
#: clock of the file systems in use, 2 s.
SETTLED_S = 2.0

Fingerprint = tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class _ReadFolder:
    """The content of a folder; ``seen`` is when its present fingerprint was first seen, ``clock`` seconds."""

    fingerprint: Fingerprint
    seen: float
    read: float
    content: Artifact | LaploraError


class ArtifactListing:
    """Reads folders of artifacts, those that have not changed from memory. For one thread at a time.

    Args:
        read: returns the artifact in a folder, every file verified.
        clock: monotonic seconds.
    """

    def __init__(self, read: Callable[[Path], Artifact], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._folders: dict[Path, _ReadFolder] = {}

    def read(self, folders: Mapping[str, Path]) -> dict[str, Artifact | LaploraError]:
        """Return what is in each folder, by name: an artifact, or why it cannot be served. The others are forgotten."""
        self._folders = {path: before for path, before in self._folders.items() if path in folders.values()}
        return {name: self._read_one(path) for name, path in folders.items()}

    def _read_one(self, path: Path) -> Artifact | LaploraError:
        now, fingerprint, before = self._clock(), _fingerprint(path), self._folders.get(path)
        seen = before.seen if before is not None and before.fingerprint == fingerprint else now
        if before is not None and before.seen == seen and before.read - seen >= SETTLED_S:
            return before.content
        content: Artifact | LaploraError
        try:
            content = self._read(path)
        except LaploraError as error:
            content = error
        self._folders[path] = _ReadFolder(fingerprint, seen, now, content)
        return content


def _fingerprint(folder: Path) -> Fingerprint:
    """Return what changes with any file of a folder, without reading one: each path with its number, size and times."""
    return tuple(map(_state, (folder, *sorted(folder.rglob("*")))))


def _state(path: Path) -> tuple[object, ...]:
    try:
        status = path.stat()
    except OSError:  # gone meanwhile, or a link to nothing
        return (path.as_posix(),)
    times = status.st_mtime_ns, status.st_ctime_ns
    return path.as_posix(), status.st_dev, status.st_ino, status.st_size, *times
