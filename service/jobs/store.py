"""Jobs and their rows' results in SQLite: every change is one transaction that is on disk when it returns.

No prompt is in it. Used from one thread; the folder's lock keeps other processes out.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.errors import JobsUnavailableError
from service.evaluation import MethodRow
from service.jobs.folder import private_file, storage_errors
from service.jobs.records import About, Job, StoredStatus
from service.jobs.sums import Sums

_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency_key TEXT,
    about TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued',
    rows_done INTEGER NOT NULL DEFAULT 0,
    input_offset INTEGER NOT NULL DEFAULT 0,
    sums TEXT NOT NULL,
    error TEXT,
    result TEXT,
    started_at REAL,
    finished_at REAL,
    UNIQUE (owner, idempotency_key)
) STRICT;
CREATE TABLE rows (
    job INTEGER NOT NULL,
    row INTEGER NOT NULL,
    label INTEGER NOT NULL,
    methods TEXT NOT NULL,
    PRIMARY KEY (job, row)
) STRICT, WITHOUT ROWID;
"""


class Store:
    """The database of a jobs folder.

    Every method raises:
        StorageFullError: the disk has no room; nothing was changed.
    """

    def __init__(self, path: Path) -> None:
        """Open the database, made for this user alone if it is new.

        Raises:
            JobsUnavailableError: it is no database of jobs, or a newer version's.
        """
        with storage_errors():
            os.close(private_file(path))
            # Opened in one thread, used and closed in the same one or, at the end, in none.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except sqlite3.DatabaseError as error:
                self._db.close()
                if isinstance(error, sqlite3.OperationalError):
                    raise
                raise JobsUnavailableError(
                    "the jobs folder's database is not one: move the folder away, the server makes a new one"
                ) from error

    def _prepare(self) -> None:
        for pragma in (
            # One connection in all: the index of the log is in memory, so there is no third file to run full.
            "locking_mode = EXCLUSIVE",
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            "synchronous = FULL",
            # The log is at most a few hundred KB long, and not what fills a small disk.
            "wal_autocheckpoint = 64",
            "temp_store = MEMORY",
        ):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            self._db.close()
            raise JobsUnavailableError("the jobs folder is a newer server's: give this one another jobs_dir")
        if version < _VERSION:
            with self._transaction():
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def close(self) -> None:
        """Close the database; the log goes into it."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with storage_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                # The log's room, if the disk had none, is there for the next try.
                self._shrink()
                raise

    def jobs(self) -> list[Job]:
        """Return every job in the order of their uploads, without the results."""
        names = "number, id, owner, idempotency_key, about, status, rows_done, input_offset, sums, error"
        found = self._db.execute(f"SELECT {names}, started_at, finished_at FROM jobs ORDER BY number").fetchall()
        return [
            Job(
                number=number,
                id=job_id,
                owner=owner,
                idempotency_key=key,
                about=About.model_validate_json(about),
                status=status,
                rows_done=rows_done,
                input_offset=offset,
                sums=Sums.model_validate_json(sums),
                error=None if error is None else json.loads(error),
                started_at=started_at,
                finished_at=finished_at,
            )
            for number, job_id, owner, key, about, status, rows_done, offset, sums, error, started_at, finished_at in (
                found
            )
        ]

    def add(self, job: Job) -> int:
        """Keep a new job, and return its number."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO jobs (id, owner, idempotency_key, about, sums) VALUES (?, ?, ?, ?, ?)",
                (job.id, job.owner, job.idempotency_key, job.about.model_dump_json(), job.sums.model_dump_json()),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def add_rows(
        self,
        job: int,
        first: int,
        labels: Sequence[int],
        rows: Sequence[Mapping[str, MethodRow]],
        *,
        sums: Sums,
        input_offset: int,
        started_at: float,
    ) -> bool:
        """Keep the results of the next rows, all or none; false if the job has ended or they are not the next ones.

        Args:
            first: number of the first row, from 0.
            sums, input_offset: as they are with these rows.
        """
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE jobs SET rows_done = ?, input_offset = ?, sums = ?, started_at = coalesce(started_at, ?) "
                "WHERE number = ? AND status = 'queued' AND rows_done = ?",
                (first + len(rows), input_offset, sums.model_dump_json(), started_at, job, first),
            )
            if cursor.rowcount != 1:
                return False
            self._db.executemany(
                "INSERT INTO rows (job, row, label, methods) VALUES (?, ?, ?, ?)",
                [
                    (job, first + i, label, json.dumps(methods, allow_nan=False, separators=(",", ":")))
                    for i, (label, methods) in enumerate(zip(labels, rows, strict=True))
                ],
            )
            return True

    def rows(self, job: int, first: int, count: int) -> list[tuple[int, dict[str, MethodRow]]]:
        """Return at most ``count`` rows from number ``first`` on, in order: each its label's place and its numbers."""
        found = self._db.execute(
            "SELECT label, methods FROM rows WHERE job = ? AND row >= ? ORDER BY row LIMIT ?", (job, first, count)
        )
        return [(label, json.loads(methods)) for label, methods in found]

    def end(
        self,
        job: int,
        status: StoredStatus,
        *,
        finished_at: float,
        error: Mapping[str, Any] | None = None,
        result: str | None = None,
    ) -> bool:
        """Let a job end, and remove its rows, of which the result has all that is wanted; false if it has ended.

        Args:
            result: JSON.
        """
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE jobs SET status = ?, finished_at = ?, error = ?, result = ? "
                "WHERE number = ? AND status = 'queued'",
                (status, finished_at, None if error is None else json.dumps(error), result, job),
            )
            self._db.execute("DELETE FROM rows WHERE job = ?", (job,))
        self._shrink()
        return cursor.rowcount == 1

    def result(self, job: int) -> str | None:
        """Return a job's result, JSON; None where it has none."""
        found = self._db.execute("SELECT result FROM jobs WHERE number = ?", (job,)).fetchone()
        return None if found is None else found[0]

    def remove(self, jobs: Sequence[int]) -> None:
        """Remove jobs and all of theirs."""
        with self._transaction():
            for table, column in (("rows", "job"), ("jobs", "number")):
                self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(job,) for job in jobs])
        self._shrink()

    def _shrink(self) -> None:
        # What was removed is the disk's again. That is no part of the promise: a full disk may put it off.
        try:
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:
            return
