"""The folder that jobs are kept in: one process at a time, and readable by its user alone.

Everything is in a sub-folder of its own, which a marker names as the server's:

    JOBS_DIR/laplora-jobs/
        made-by-laplora     the marker
        lock                held for as long as a server has the folder
        jobs.sqlite         the jobs, their rows' results and metrics (``store.py``)
        ID.part, ID.jsonl   the upload ID, until and once it is whole; ID has 32 hexadecimal digits

No other file is ever written, moved or removed. A folder that holds other files is not taken: whoever named it meant
another one. Hidden files and ``lost+found`` are nobody's mistake, and are left alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from service.errors import JobsUnavailableError
from service.jobs import earlier_layout
from service.jobs.disk import private_file, storage_errors, sync_folder

OWN_FOLDER = "laplora-jobs"
MARKER = "made-by-laplora"
DATABASE = "jobs.sqlite"
_UPLOAD = re.compile(r"(?P<id>[0-9a-f]{32})\.(?P<kind>part|jsonl)")
_OWN_NAMES = frozenset({MARKER, "lock", *(DATABASE + end for end in ("", "-wal", "-shm", "-journal"))})


class StrangersError(JobsUnavailableError):
    """The folder holds files that no server made.

    Attributes:
        names: of some of them; for the log only.
    """

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
    """The server's own folder inside ``jobs_dir``, locked for this process until :meth:`close`.

    What an earlier version kept in ``jobs_dir`` itself is moved in, see ``earlier_layout``.

    Args:
        jobs_dir: made if it is not there, for this user alone.

    Raises:
        StrangersError: it holds files that no server made.
        JobsUnavailableError: another process has it, or it cannot be written; the log has its name, not the message.
    """

    def __init__(self, jobs_dir: Path) -> None:
        self.path = jobs_dir / OWN_FOLDER
        self._locks = ExitStack()
        try:
            if not jobs_dir.is_dir():
                jobs_dir.mkdir(mode=0o700, parents=True)
            check_no_strangers(jobs_dir)
            if (jobs_dir / "lock").exists():
                # An earlier version's server would hold this one.
                self._lock(jobs_dir / "lock")
            if not self.path.is_dir():
                self.path.mkdir(mode=0o700)
            # The marker comes first: without it, what is in the folder is a stranger's.
            os.close(private_file(self.path / MARKER))
            self._lock(self.path / "lock")
            with storage_errors():
                earlier_layout.move_in(jobs_dir, self.path)
                self.sync()
        except OSError as error:
            self.close()
            raise JobsUnavailableError(
                f"the jobs folder cannot be written ({type(error).__name__}): give the server another jobs_dir"
            ) from error
        except BaseException:
            self.close()
            raise

    def _lock(self, path: Path) -> None:
        lock = FileLock(path, timeout=0, mode=0o600, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise JobsUnavailableError(
                "another server process has the jobs folder: stop that one, or give this one a jobs_dir of its own"
            ) from None
        self._locks.callback(lock.release)

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
        self.upload(job_id).rename(self.inputs(job_id))
        self.sync()

    def sync(self) -> None:
        """Bring the folder's entries to disk."""
        sync_folder(self.path)

    def discard(self, job_id: str) -> None:
        """Remove a job's inputs, whole or not, if they are there."""
        self.upload(job_id).unlink(missing_ok=True)
        self.inputs(job_id).unlink(missing_ok=True)

    def discard_others(self, job_ids: Collection[str]) -> None:
        """Remove every upload but these jobs': what a crash left. Files of other names stay."""
        for path in list(self.path.iterdir()):
            found = _UPLOAD.fullmatch(path.name)
            if found is not None and (found["kind"] == "part" or found["id"] not in job_ids):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process have the folder."""
        self._locks.close()


def check_no_strangers(jobs_dir: Path) -> None:
    """Check that a folder is empty, or holds what a server, or an earlier version's, made.

    Raises:
        StrangersError: it holds something else. Nothing was changed.
    """
    own = jobs_dir / OWN_FOLDER
    marked = own.is_dir() and not own.is_symlink() and (own / MARKER).is_file()
    earlier = marked or earlier_layout.is_there(jobs_dir)
    strangers = [
        name
        for name in _shown(jobs_dir)
        if not (name == OWN_FOLDER and own.is_dir() and not own.is_symlink())
        and not (earlier_layout.is_own_name(jobs_dir, name))
        and not (earlier and _UPLOAD.fullmatch(name))
    ]
    if own.is_dir():
        strangers += [
            f"{OWN_FOLDER}/{name}"
            for name in _shown(own)
            if not marked or (name not in _OWN_NAMES and not _UPLOAD.fullmatch(name))
        ]
    if strangers:
        raise StrangersError(strangers)


def _shown(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(".") and name != "lost+found"]
