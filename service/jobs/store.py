"""Jobs and their rows' results in SQLite: every change is one transaction that is on disk when it returns.

No transaction holds more rows than one chunk of a job, so the log stays short: the rows of a job that has ended or was
removed go afterwards, some at a time (``sweep``). No prompt is in the database. Used from one thread; the folder's lock
keeps other processes out.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.errors import JobsUnavailableError
from service.jobs.folder import private_file, storage_errors
from service.jobs.metrics import ScoredRow, Sums
from service.jobs.records import About, Job, Rows, StoredStatus

#: Of the tables below. A database of another format is refused.
_FORMAT = 4
_TABLES = """
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
    absent_s REAL NOT NULL DEFAULT 0,
    UNIQUE (owner, idempotency_key)
) STRICT;
CREATE TABLE rows (
    job INTEGER NOT NULL,
    row INTEGER NOT NULL,
    label INTEGER NOT NULL,
    methods TEXT NOT NULL,
    PRIMARY KEY (job, row)
) STRICT, WITHOUT ROWID;
CREATE TABLE bad_rows (
    job INTEGER NOT NULL,
    row INTEGER NOT NULL,
    code TEXT NOT NULL,
    PRIMARY KEY (job, row)
) STRICT, WITHOUT ROWID;
CREATE TABLE begun (
    job INTEGER NOT NULL,
    first INTEGER NOT NULL,
    after INTEGER NOT NULL,
    lone_tries INTEGER NOT NULL,
    PRIMARY KEY (job, first, after)
) STRICT, WITHOUT ROWID;
"""
#: Those that are attributes of a job.
_JOB_COLUMNS = (
    "number, id, owner, idempotency_key, about, status, rows_done, input_offset, sums, error, started_at, finished_at, "
    "absent_s"
)
#: Most rows that one transaction removes, and most pages that it gives back to the disk.
_SLICE_ROWS = 256
_SLICE_PAGES = 64


class Store:
    """The database of a jobs folder.

    Every method raises:
        StorageFullError: the disk has no room; nothing was changed.
    """

    def __init__(self, path: Path) -> None:
        """Open the database, made for this user alone if it is new.

        Raises:
            JobsUnavailableError: it is no database of jobs, or one of another format.
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
        # One connection in all: the index of the log is in memory, so there is no third file to run full.
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _FORMAT):
            self._db.close()
            raise JobsUnavailableError(
                f"the jobs folder has format {version}, this server reads format {_FORMAT}: give it another jobs_dir"
            )
        for pragma in (
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            "synchronous = FULL",
            # The log is at most a few hundred KB long, and not what fills a small disk.
            "wal_autocheckpoint = 64",
            "temp_store = MEMORY",
        ):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        if version == 0:
            with self._transaction():
                for statement in [*_TABLES.split(";\n"), f"PRAGMA user_version = {_FORMAT}"]:
                    self._db.execute(statement)

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
                self._empty_log()
                raise

    def jobs(self) -> list[Job]:
        """Return every job, in the order of their uploads."""
        bad_counts: dict[int, Counter[str]] = {}
        for number, code, count in self._db.execute("SELECT job, code, count(*) FROM bad_rows GROUP BY job, code"):
            bad_counts.setdefault(number, Counter())[code] = count
        begun: dict[int, dict[Rows, int]] = {}
        for number, first, after, lone_tries in self._db.execute("SELECT job, first, after, lone_tries FROM begun"):
            begun.setdefault(number, {})[first, after] = lone_tries
        cursor = self._db.cursor()
        cursor.row_factory = sqlite3.Row
        jobs = []
        for row in cursor.execute(f"SELECT {_JOB_COLUMNS} FROM jobs ORDER BY number"):
            values = dict(row)
            values["about"] = About.model_validate_json(values["about"])
            values["sums"] = Sums.model_validate_json(values["sums"])
            values["error"] = None if values["error"] is None else json.loads(values["error"])
            number = values["number"]
            jobs.append(Job(**values, bad_counts=bad_counts.get(number, Counter()), begun=begun.get(number, {})))
        return jobs

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
        count: int,
        *,
        scored: Sequence[ScoredRow],
        bad: Mapping[int, str],
        sums: Sums,
        input_offset: int,
        started_at: float,
    ) -> bool:
        """Keep the results of the next rows, all or none; false if the job has ended or they are not the next ones.

        Args:
            first: number of the first row, from 0.
            count: how many rows are over with these: those scored and the bad ones.
            bad: by a row's number the code of why it has no answer.
            sums, input_offset: as they are with these rows.
        """
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE jobs SET rows_done = ?, input_offset = ?, sums = ?, started_at = coalesce(started_at, ?), "
                "absent_s = 0 WHERE number = ? AND status = 'queued' AND rows_done = ?",
                (first + count, input_offset, sums.model_dump_json(), started_at, job, first),
            )
            if cursor.rowcount != 1:
                return False
            self._db.executemany(
                "INSERT INTO rows (job, row, label, methods) VALUES (?, ?, ?, ?)",
                [
                    (job, row, label, json.dumps(methods, allow_nan=False, separators=(",", ":")))
                    for row, label, methods in scored
                ],
            )
            self._add_bad(job, bad)
            self._db.execute("DELETE FROM begun WHERE job = ? AND after <= ?", (job, first + count))
            return True

    def _add_bad(self, job: int, bad: Mapping[int, str]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO bad_rows (job, row, code) VALUES (?, ?, ?)",
            [(job, row, code) for row, code in sorted(bad.items())],
        )

    def rows(self, job: int, after: int, count: int) -> list[ScoredRow]:
        """Return at most ``count`` scored rows of numbers above ``after``, in order."""
        rows = self._db.execute(
            "SELECT row, label, methods FROM rows WHERE job = ? AND row > ? ORDER BY row LIMIT ?", (job, after, count)
        )
        return [ScoredRow(row, label, json.loads(methods)) for row, label, methods in rows]

    def bad_rows(self, job: int) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of the rows that could not be scored, in order, and the codes of why."""
        return self._db.execute("SELECT row, code FROM bad_rows WHERE job = ? ORDER BY row", (job,)).fetchall()

    def set_begun(self, job: int, rows: Rows, lone_tries: int | None) -> None:
        """Keep that these rows are under way, of a job that has not ended; ``add_rows`` forgets those that are over.

        Args:
            lone_tries: how often they were begun with nothing of any job beside them; None: they are not under way.
        """
        with self._transaction():
            if lone_tries is None:
                self._db.execute("DELETE FROM begun WHERE job = ? AND first = ? AND after = ?", (job, *rows))
            else:
                self._db.execute(
                    "INSERT OR REPLACE INTO begun (job, first, after, lone_tries) "
                    "SELECT number, ?, ?, ? FROM jobs WHERE number = ? AND status = 'queued'",
                    (*rows, lone_tries, job),
                )

    def restore_begun(self, begun: Mapping[int, Mapping[Rows, int]]) -> None:
        """Keep, by job, these rows alone as under way, with their lone tries."""
        with self._transaction():
            for job, known in begun.items():
                self._db.execute("DELETE FROM begun WHERE job = ?", (job,))
                self._db.executemany(
                    "INSERT INTO begun (job, first, after, lone_tries) VALUES (?, ?, ?, ?)",
                    [(job, first, after, tries) for (first, after), tries in known.items()],
                )

    def set_absent(self, job: int, absent_s: float) -> None:
        """Keep for how long a job's artifact has not been loaded, in seconds."""
        with self._transaction():
            self._db.execute("UPDATE jobs SET absent_s = ? WHERE number = ?", (absent_s, job))

    def end(
        self,
        job: int,
        status: StoredStatus,
        *,
        finished_at: float,
        error: Mapping[str, Any] | None = None,
        result: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> bool:
        """Let a job end; false if it has. Its rows, of which the result has all that is wanted, are for ``sweep``.

        Args:
            result: JSON.
            bad: as of ``add_rows``, of rows that are not over.
        """
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE jobs SET status = ?, finished_at = ?, error = ?, result = ? "
                "WHERE number = ? AND status = 'queued'",
                (status, finished_at, None if error is None else json.dumps(error), result, job),
            )
            self._add_bad(job, bad or {})
            self._db.execute("DELETE FROM begun WHERE job = ?", (job,))
        return cursor.rowcount == 1

    def result(self, job: int) -> str | None:
        """Return a job's result, JSON; None where it has none."""
        row = self._db.execute("SELECT result FROM jobs WHERE number = ?", (job,)).fetchone()
        return None if row is None else row[0]

    def remove(self, jobs: Sequence[int]) -> None:
        """Remove jobs, a few at once; what of their rows is left is for ``sweep``."""
        with self._transaction():
            self._db.executemany("DELETE FROM jobs WHERE number = ?", [(job,) for job in jobs])

    def sweep(self) -> bool:
        """Remove some of what is no job's any more, and give its room back to the disk; false once nothing is left."""
        for table, needed in (("rows", "status = 'queued'"), ("bad_rows", "true")):
            job = self._leftover(table, needed)
            if job is not None:
                with self._transaction():
                    self._db.execute(
                        f"DELETE FROM {table} WHERE job = ? AND row IN "
                        f"(SELECT row FROM {table} WHERE job = ? ORDER BY row LIMIT {_SLICE_ROWS})",
                        (job, job),
                    )
                return True
        if self._db.execute("PRAGMA freelist_count").fetchone()[0]:
            with storage_errors():
                self._db.execute(f"PRAGMA incremental_vacuum({_SLICE_PAGES})").fetchall()
            return True
        self._empty_log()
        return False

    def _leftover(self, table: str, needed: str) -> int | None:
        """Return a job that has rows in a table and does not need them, by a look at each job that has some."""
        job = -1
        while True:
            (job,) = self._db.execute(f"SELECT min(job) FROM {table} WHERE job > ?", (job,)).fetchone()
            if job is None:
                return None
            if self._db.execute(f"SELECT 1 FROM jobs WHERE number = ? AND {needed}", (job,)).fetchone() is None:
                return int(job)

    def _empty_log(self) -> None:
        # That is no part of any promise: a full disk may put it off.
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError:
            return
