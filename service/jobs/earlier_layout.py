"""What the first version kept in ``jobs_dir`` itself, and its move into the folder that the server has there now.

That was ``lock``, ``jobs.sqlite`` with its log, ``ID.jsonl`` of each unfinished job, and, after a crash, uploads that
no job knows. The move can be cut off anywhere and goes on at the next start: uploads first, the database, by one
rename, last. An upload that the database does not name may be anybody's file: it stays where it is.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from service.errors import JobsUnavailableError
from service.jobs.disk import sync_folder

_DATABASE = "jobs.sqlite"
_LOGS = tuple(_DATABASE + end for end in ("-wal", "-shm", "-journal"))
_VERSION = 1
_COLUMNS = {
    "jobs": "number id owner idempotency_key about status rows_done input_offset sums error result started_at "
    "finished_at",
    "rows": "job row label methods",
    "sqlite_sequence": "name seq",
}
_TABLES = {table: frozenset(columns.split()) for table, columns in _COLUMNS.items()}


def is_own_name(jobs_dir: Path, name: str) -> bool:
    """Return whether a file of ``jobs_dir`` can be the first version's by its name; its lock is always empty."""
    if name == "lock":
        return (jobs_dir / name).is_file() and (jobs_dir / name).stat().st_size == 0
    return name in (_DATABASE, *_LOGS) and is_there(jobs_dir)


def is_there(jobs_dir: Path) -> bool:
    """Return whether ``jobs_dir`` has a database of the first version, by its number, tables and columns.

    One that is new has none of them.

    Raises:
        JobsUnavailableError: it is no database.
    """
    path = jobs_dir / _DATABASE
    if not path.is_file():
        return False
    # Read as it lies: a log, which may hold more, is neither read nor touched.
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            tables = {
                name: frozenset(column for (column,) in db.execute("SELECT name FROM pragma_table_info(?)", (name,)))
                for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type != 'index'").fetchall()
            }
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise JobsUnavailableError(
            "the jobs folder's database is not one: move the folder away, the server makes a new one"
        ) from error
    return (version, tables) in ((0, {}), (_VERSION, _TABLES))


def move_in(jobs_dir: Path, own: Path) -> None:
    """Move the first version's jobs into the server's own folder, if there are any. Both are locked.

    Raises:
        JobsUnavailableError: there are jobs of both versions.
        sqlite3.Error, OSError: the files cannot be read or moved; nothing is lost.
    """
    database = jobs_dir / _DATABASE
    if not database.is_file():
        return
    if (own / _DATABASE).exists():
        raise JobsUnavailableError(
            "the jobs folder holds an earlier version's jobs beside newer ones, so that version ran on it again: serve "
            "a copy of the earlier files from a folder of their own, then remove them here"
        )
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        known = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'jobs'").fetchone()
        ids = [job_id for (job_id,) in db.execute("SELECT id FROM jobs")] if known else []
        # What the log holds goes into the database, which is one file then, and can be moved by one rename.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute("PRAGMA journal_mode = DELETE").fetchall()
    if any((jobs_dir / name).exists() for name in _LOGS):
        raise JobsUnavailableError("the jobs folder's database has a log that cannot be merged: is the disk full?")
    for job_id in ids:
        if (jobs_dir / f"{job_id}.jsonl").is_file():
            os.rename(jobs_dir / f"{job_id}.jsonl", own / f"{job_id}.jsonl")
    sync_folder(own)
    os.rename(database, own / _DATABASE)
    sync_folder(own)
    sync_folder(jobs_dir)
