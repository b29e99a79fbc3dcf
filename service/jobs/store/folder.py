"""The folder that jobs are kept in: one process at a time, and readable by its user alone.

Everything is in a sub-folder, which a marker names as the server's:

    JOBS_DIR/laplora-jobs/
        made-by-laplora     the marker
        lock                held for as long as a server has the folder
        jobs.sqlite         the jobs, their rows' answers and metrics (``schema.py``)
        ID.part, ID.jsonl   the upload ID, until and once it is whole; ID has 32 hexadecimal digits

If the jobs are in a database that servers share, uploads are in ``laplora-jobs-shared`` beside it, which any number of
them may have: without ``lock`` and ``jobs.sqlite``. If uploads are in a remote store, the folder has copies for the
server that runs the job.

No other file is ever written, moved or removed. A folder that holds other files is refused, but for hidden ones and
``lost+found``.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from laplora.files.atomic import FULL_DISK
from service.errors import JobsUnavailableError, StorageFullError
from service.jobs.store.remote import RemoteUploads

SUBFOLDER, SHARED_SUBFOLDER = "laplora-jobs", "laplora-jobs-shared"
MARKER = "made-by-laplora"
DATABASE = "jobs.sqlite"
_UPLOAD = re.compile(r"[0-9a-f]{32}\.(part|jsonl)")
#: The partial files of a fetch that a crash cut off, and of an upload in a folder that other servers share.
_FETCHED = ".fetched-"
#: No upload may take longer (``job_upload_timeout_s``), twice.
_ABANDONED_S = 2 * 86_400.0
_NAMES = frozenset({MARKER, "lock", *(DATABASE + end for end in ("", "-wal", "-shm", "-journal"))})


class ForeignFilesError(JobsUnavailableError):
    """The folder holds files that no server made; ``names`` are some of theirs, for the log only."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(
            f"expected a jobs folder that is empty or a server's own, got one with other files ({len(names)}, named in "
            "the server's log); nothing was touched: give the server another jobs_dir, or move them away"
        )
        self.names = sorted(names)[:10]


def default_jobs_dir() -> Path:
    """Return the folder of the user's state: ``XDG_STATE_HOME/laplora/jobs``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "laplora" / "jobs"


class JobsFolder:
    """The server's sub-folder of ``jobs_dir``, locked for this process until :meth:`close`, unless it is shared.

    It is made if it is not there, for this user alone.

    Args:
        shared: whether other servers have it too.
        remote: where uploads are kept; None: here.

    Raises:
        ForeignFilesError: it holds files that no server made.
        JobsUnavailableError: another process has it, or it cannot be written; the log has its name, not the message.
    """

    def __init__(self, jobs_dir: Path, *, shared: bool = False, remote: RemoteUploads | None = None) -> None:
        self.path = jobs_dir / (SHARED_SUBFOLDER if shared else SUBFOLDER)
        self.remote, self._shared = remote, shared
        self._lock = FileLock(self.path / "lock", timeout=0, mode=0o600, thread_local=False)
        try:
            jobs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_no_foreign_files(jobs_dir)
            self.path.mkdir(mode=0o700, exist_ok=True)
            # The marker comes first: without it, what is in the folder is someone else's.
            os.close(private_file(self.path / MARKER))
            if not shared:
                self._lock.acquire()
            with storage_errors():
                self.sync()
        except Timeout:
            raise JobsUnavailableError(
                "another server process has the jobs folder: stop that one, or give this one a jobs_dir of its own"
            ) from None
        except OSError as error:
            self.close()
            raise JobsUnavailableError(
                f"the jobs folder cannot be written ({type(error).__name__}): give the server another jobs_dir"
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def database(self) -> Path:
        """The jobs and their results."""
        return self.path / DATABASE

    def inputs(self, job_id: str) -> Path:
        """Return where a job's upload is: the only place on disk where prompts are."""
        return self.path / f"{job_id}.jsonl"

    def upload(self, job_id: str) -> Path:
        """Return where an upload is until it is whole."""
        return self.path / f"{job_id}.part"

    def keep(self, job_id: str) -> None:
        """Make an upload whose file is on disk a job's inputs, to stay through a crash of the machine."""
        if self.remote is not None:
            self.remote.put(self.upload(job_id), _name(job_id))
        self.upload(job_id).rename(self.inputs(job_id))
        self.sync()

    def fetch(self, job_id: str, size_bytes: int) -> None:
        """See to it that a job's inputs are in the folder.

        Raises:
            FileNotFoundError: there are none.
            UploadChangedError: the remote store has another size of them than ``size_bytes``.
            JobsUnavailableError, StorageFullError: the remote store does not answer; the disk has no room.
        """
        if not self.inputs(job_id).exists():
            with self._fetched(job_id, size_bytes) as copy:
                copy.rename(self.inputs(job_id))

    def open(self, job_id: str, size_bytes: int) -> BinaryIO:
        """Return a job's inputs, opened for reading; raises as ``fetch``."""
        try:
            return self.inputs(job_id).open("rb")
        except FileNotFoundError:
            with self._fetched(job_id, size_bytes) as copy:
                return copy.open("rb")

    @contextmanager
    def _fetched(self, job_id: str, size_bytes: int) -> Iterator[Path]:
        """Yield a copy of a job's inputs, which is gone afterwards unless it was moved."""
        if self.remote is None:
            raise FileNotFoundError(_name(job_id))
        # A name of this call's own: another server may have the same folder.
        copy = self.path / f"{_FETCHED}{job_id}-{secrets.token_hex(8)}"
        try:
            with storage_errors():
                os.close(private_file(copy))
                self.remote.get(_name(job_id), copy, size_bytes=size_bytes)
            yield copy
        finally:
            copy.unlink(missing_ok=True)

    def forget_copy(self, job_id: str) -> None:
        """Remove the copy of a job's inputs, where there is an original."""
        if self.remote is not None:
            self.inputs(job_id).unlink(missing_ok=True)

    def sync(self) -> None:
        """Bring the folder's entries to disk."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def give_up(self, job_id: str) -> None:
        """Remove what has come of an upload that is not kept."""
        self.upload(job_id).unlink(missing_ok=True)

    def discard(self, job_id: str) -> None:
        """Remove a job's inputs, whole or not, if they are there."""
        self.give_up(job_id)
        self.inputs(job_id).unlink(missing_ok=True)
        if self.remote is not None:
            self.remote.remove(_name(job_id))

    def discard_others(self, job_ids: Collection[str]) -> None:
        """Remove what a crash left: every upload but these jobs'.

        In a shared folder, these are copies, and parts of uploads that are older than any upload may take: the rest may
        be another server's.
        """
        needed = {self.inputs(job_id) for job_id in job_ids}
        for path in list(self.path.iterdir()):
            fetched = path.name.startswith(_FETCHED)
            if not (fetched or (_UPLOAD.fullmatch(path.name) and path not in needed)):
                continue
            whole = path.suffix == ".jsonl" and not fetched
            if self._shared and whole and self.remote is None:
                continue
            # A whole one is a copy here, which its server can fetch again.
            if self._shared and not whole:
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime > time.time() - _ABANDONED_S:
                        continue
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.release()


def _name(job_id: str) -> str:
    return f"{job_id}.jsonl"


def _check_no_foreign_files(jobs_dir: Path) -> None:
    folders = {name: jobs_dir / name for name in (SUBFOLDER, SHARED_SUBFOLDER)}
    # Listed before they are looked at: another server may make the shared one, or its marker, meanwhile.
    shown = _shown(jobs_dir)
    own_folders = {name for name, path in folders.items() if path.is_dir() and not path.is_symlink()}
    foreign = [name for name in shown if name not in own_folders]
    for subfolder in sorted(own_folders):
        shown = _shown(folders[subfolder])
        marked = (folders[subfolder] / MARKER).is_file()
        foreign += [
            f"{subfolder}/{name}" for name in shown if not (marked and (name in _NAMES or _UPLOAD.fullmatch(name)))
        ]
    if foreign:
        raise ForeignFilesError(foreign)


def _shown(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(".") and name != "lost+found"]


def private_file(path: Path) -> int:
    """Return the descriptor of a file opened for appending, made for this user alone if it is new."""
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a full disk raises, of files or of SQLite, into StorageFullError: no room, a quota, a refused write."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        if isinstance(error, OSError):
            full = error.errno in FULL_DISK
        else:
            # A quota or a file's largest size is no ENOSPC, and SQLite calls it a failed write.
            full = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
        if not full:
            raise
        raise StorageFullError("the disk has no room for jobs: try again later, or remove jobs") from error
