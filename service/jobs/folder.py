"""The folder that jobs are kept in: one process at a time, readable by its user alone, and what a full disk says."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from service.errors import JobsUnavailableError, StorageFullError

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def default_jobs_dir() -> Path:
    """Return the folder of the user's state: ``XDG_STATE_HOME/laplora/jobs``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "laplora" / "jobs"


class JobsFolder:
    """The folder, locked for this process until :meth:`close`.

    Args:
        path: made if it is not there, for this user alone.

    Raises:
        JobsUnavailableError: another process has it, or it cannot be written; the log has its name, not the message.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_dir():
                path.mkdir(mode=0o700, parents=True)
            self._lock = FileLock(path / "lock", timeout=0, mode=0o600, thread_local=False)
            self._lock.acquire()
        except Timeout:
            raise JobsUnavailableError(
                "another server process has the jobs folder: stop that one, or give this one a jobs_dir of its own"
            ) from None
        except OSError as error:
            raise JobsUnavailableError(
                f"the jobs folder cannot be written ({type(error).__name__}): give the server another jobs_dir"
            ) from error

    @property
    def database(self) -> Path:
        """The jobs and their results."""
        return self.path / "jobs.sqlite"

    def inputs(self, job_id: str) -> Path:
        """Return where a job's upload is: the only place on disk where prompts are."""
        return self.path / f"{job_id}.jsonl"

    def upload(self, job_id: str) -> Path:
        """Return where an upload is until it is whole."""
        return self.path / f"{job_id}.part"

    def keep(self, job_id: str) -> None:
        """Make an upload whose file is on disk a job's inputs, to stay through a crash of the machine."""
        self.upload(job_id).rename(self.inputs(job_id))
        self.sync()

    def sync(self) -> None:
        """Bring the folder's entries to disk."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def discard(self, job_id: str) -> None:
        """Remove a job's inputs, whole or not, if they are there."""
        self.upload(job_id).unlink(missing_ok=True)
        self.inputs(job_id).unlink(missing_ok=True)

    def discard_others(self, job_ids: Collection[str]) -> None:
        """Remove every upload but these jobs': what a crash left."""
        for path in [*self.path.glob("*.part"), *self.path.glob("*.jsonl")]:
            if path.suffix == ".part" or path.stem not in job_ids:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.release()


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
        if error.errno not in _FULL_ERRNOS:
            raise
        raise StorageFullError("the disk has no room for jobs: try again later, or remove jobs") from error
