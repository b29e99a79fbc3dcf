"""Jobs and their rows' results in SQLite: every change is one transaction that is on disk when it returns.

No transaction holds more rows than one chunk of a job, so the log stays short: the rows of a job that has ended or was
removed go afterwards, some at a time (``sweep``). No prompt is in the database. Used from one thread at a time.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.errors import JobsUnavailableError
from service.jobs.folder import private_file, storage_errors
from service.jobs.records import About, Job, Rows, ScoredRow, StoredStatus, Sums
from service.scoring.labels import Truth

#: Of the tables below. A database of another format is refused.
_FORMAT = 5
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
    truth TEXT NOT NULL,
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
_PRAGMAS = (
    "auto_vacuum = INCREMENTAL",
    "journal_mode = WAL",
    "synchronous = FULL",
    "wal_autocheckpoint = 64",  # pages: the log stays within a few hundred KB, and does not fill a small disk
    "temp_store = MEMORY",
)
#: Those that are attributes of a job.
_JOB_COLUMNS = (
    "number, id, owner, idempotency_key, about, status, rows_done, input_offset, sums, error, started_at, finished_at, "
    "absent_s"
)
#: Most rows that one transaction removes, and most pages that it gives back to the disk.
_SLICE_ROWS, _SLICE_PAGES = 256, 64


class Store:
    """The database of a jobs folder. A method raises StorageFullError for a disk without room, and changes nothing."""

    def __init__(self, path: Path) -> None:
        """Open the database, made for this user alone if it is new.

        Raises:
            JobsUnavailableError: it is no database of jobs, or one of another format.
        """
        with storage_errors():
            os.close(private_file(path))
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
        for pragma in _PRAGMAS:
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
                self._db.rollback()
                # The log's room, if the disk had none, is there for the next try.
                self._empty_log()
                raise

    def jobs(self) -> list[Job]:
        """Return every job, in the order of their uploads."""
        bad_counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        for number, code, count in self._db.execute("SELECT job, code, count(*) FROM bad_rows GROUP BY job, code"):
            bad_counts[number][code] = count
        begun: defaultdict[int, dict[Rows, int]] = defaultdict(dict)
        for number, first, after, lone_tries in self._db.execute("SELECT job, first, after, lone_tries FROM begun"):
            begun[number][first, after] = lone_tries
        cursor = self._db.cursor()
        cursor.row_factory = sqlite3.Row
        jobs = []
        for row in cursor.execute(f"SELECT {_JOB_COLUMNS} FROM jobs ORDER BY number"):
            read = {
                "about": About.model_validate_json(row["about"]),
                "sums": Sums.model_validate_json(row["sums"]),
                "error": row["error"] and json.loads(row["error"]),
                "bad_counts": bad_counts[row["number"]],
                "begun": begun[row["number"]],
            }
            jobs.append(Job(**{**row, **read}))
        return jobs

    def add(self, job: Job) -> int:
        """Keep a new job, and return its number."""
        with self._transaction():
            (number,) = self._db.execute(
                "INSERT INTO jobs (id, owner, idempotency_key, about, sums) VALUES (?, ?, ?, ?, ?) RETURNING number",
                (job.id, job.owner, job.idempotency_key, job.about.model_dump_json(), job.sums.model_dump_json()),
            ).fetchone()
            return int(number)

    def add_rows(
        self,
        job: int,
        rows: Rows,
        *,
        scored: Sequence[ScoredRow],
        bad: Mapping[int, str],
        sums: Sums,
        input_offset: int,
        started_at: float,
    ) -> bool:
        """Keep the results of the next rows, all or none; false if the job has ended or they are not the next ones."""
        first, after = rows
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE jobs SET rows_done = ?, input_offset = ?, sums = ?, started_at = coalesce(started_at, ?), "
                "absent_s = 0 WHERE number = ? AND status = 'queued' AND rows_done = ?",
                (after, input_offset, sums.model_dump_json(), started_at, job, first),
            )
            if cursor.rowcount != 1:
                return False
            self._db.executemany(
                "INSERT INTO rows (job, row, truth, methods) VALUES (?, ?, ?, ?)",
                [(job, one.row, _json(one.truth), _json(one.methods)) for one in scored],
            )
            self._add_bad(job, bad)
            self._db.execute("DELETE FROM begun WHERE job = ? AND after <= ?", (job, after))
            return True

    def _add_bad(self, job: int, bad: Mapping[int, str]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO bad_rows (job, row, code) VALUES (?, ?, ?)",
            [(job, row, code) for row, code in sorted(bad.items())],
        )

    def rows(self, job: int, after: int, count: int) -> list[ScoredRow]:
        """Return at most ``count`` scored rows of numbers above ``after``, in order."""
        rows = self._db.execute(
            "SELECT row, truth, methods FROM rows WHERE job = ? AND row > ? ORDER BY row LIMIT ?", (job, after, count)
        )
        return [ScoredRow(row, _truth(json.loads(truth)), json.loads(methods)) for row, truth, methods in rows]

    def bad_rows(self, job: int) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of the rows that could not be scored, in order, and the codes of why."""
        return self._db.execute("SELECT row, code FROM bad_rows WHERE job = ? ORDER BY row", (job,)).fetchall()

    def set_begun(self, job: int, begun: Mapping[Rows, int]) -> None:
        """Keep which rows of a job that has not ended are under way; ``add_rows`` forgets those that are over."""
        with self._transaction():
            self._db.execute("DELETE FROM begun WHERE job = ?", (job,))
            self._db.executemany(
                "INSERT INTO begun (job, first, after, lone_tries) "
                "SELECT number, ?, ?, ? FROM jobs WHERE number = ? AND status = 'queued'",
                [(*rows, tries, job) for rows, tries in begun.items()],
            )

    def set_absent(self, job: int, absent_s: float) -> None:
        """Keep for how many seconds a job's artifact has not been loaded."""
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
    ) -> None:
        """Let a job end that has not. Its rows, of which the result has all that is wanted, are for ``sweep``."""
        with self._transaction():
            self._db.execute(
                "UPDATE jobs SET status = ?, finished_at = ?, error = ?, result = ? "
                "WHERE number = ? AND status = 'queued'",
                (status, finished_at, error and _json(error), result, job),
            )
            self._add_bad(job, bad or {})
            self._db.execute("DELETE FROM begun WHERE job = ?", (job,))

    def result(self, job: int) -> str | None:
        """Return a job's result, JSON; None where it has none."""
        (result,) = self._db.execute("SELECT result FROM jobs WHERE number = ?", (job,)).fetchone() or (None,)
        return result

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
        with suppress(sqlite3.OperationalError):  # a full disk may put it off
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _truth(value: int | list[int]) -> Truth:
    return tuple(value) if isinstance(value, list) else value


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
