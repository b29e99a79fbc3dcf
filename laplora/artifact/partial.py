"""The folder that an artifact is written in before it takes its place, and what killed processes left of such folders.

A process that writes holds a lock on its folder, which the system takes off at its end, however it ends. A folder
without one is nobody's any more. If folders cannot be locked (Windows, some network disks), none is removed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # pragma: no cover
    flock = None  # type: ignore[assignment]

_SUFFIX = ".partial"


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside ``target``. At the end it is gone, unless the block moved it.

    Folders that killed processes left of the same target are removed first.
    """
    _remove_abandoned(target)
    folder, lock = _new(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _new(target: Path) -> tuple[Path, int | None]:
    """Return a new folder and the descriptor that holds its lock; None where it has none."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_SUFFIX, dir=target.parent))
        if flock is None:
            return folder, None
        lock = _opened(folder)
        if lock is None:
            continue
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:  # in the moment before, another process took it for abandoned
            os.close(lock)
            continue
        except OSError:
            os.close(lock)
            return folder, None
        if folder.exists():
            return folder, lock
        os.close(lock)


def _remove_abandoned(target: Path) -> None:
    """Remove this user's folders of the target that no process holds a lock on."""
    if flock is None:
        return
    ours = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
    for folder in [path for path in target.parent.iterdir() if ours.fullmatch(path.name)]:
        lock = _opened(folder)
        if lock is None:
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                flock(lock, LOCK_EX | LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # somebody's, or nobody can tell
            continue
        finally:
            os.close(lock)


def _opened(folder: Path) -> int | None:
    """Return a descriptor of a folder; None where there is none, or a link or a file in its place."""
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
