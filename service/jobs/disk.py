"""Files for the server's user alone, folders brought to disk, and what a full disk says."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laplora.files import FULL_DISK
from service.errors import StorageFullError


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_file(path: Path) -> int:
    """Return the descriptor of a file opened for appending, made for this user alone if it is new."""
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a full disk raises, of files or of SQLite, into the service's error.

    Raises:
        StorageFullError: no room, a quota reached, or a write that the disk refused.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        # A quota or a file's largest size is no ENOSPC, and SQLite calls it a failed write.
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise
        raise StorageFullError("the disk has no room for jobs: try again later, or remove jobs") from error
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise StorageFullError("the disk has no room for jobs: try again later, or remove jobs") from error
