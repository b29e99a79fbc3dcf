"""The database of jobs: SQLite in the jobs folder, or a PostgreSQL that several servers share.

Used from one thread at a time. Every transaction is on disk when it returns. Errors of a full disk or a lost connection
become StorageFullError or JobsUnavailableError: a job waits for both to pass.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, event, func
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.pool import StaticPool

from service.errors import JobsUnavailableError, StorageFullError
from service.jobs.store.folder import private_file, storage_errors
from service.jobs.store.postgres import open_engine
from service.jobs.store.schema import check_format, make_tables

_PRAGMAS = (
    "auto_vacuum = INCREMENTAL",
    "journal_mode = WAL",
    "synchronous = FULL",
    "wal_autocheckpoint = 64",  # pages: the log stays within a few hundred KB, and does not fill a small disk
    "temp_store = MEMORY",
)
#: Most pages that one step gives back to the disk.
_SLICE_PAGES = 64
#: PostgreSQL's codes of a disk without room, and of statements that another try may carry out.
_DISK_FULL = frozenset({"53100", "53200"})
#: The codes of a server that another one replaces, and of a transaction that hung and was ended.
_PASSING = frozenset({"25006", "25P03"})
UNANSWERED = "the jobs' database does not answer: try again later"


class ConnectionLostError(JobsUnavailableError):
    """The connection was lost, perhaps with the answer to a commit: what was to be done is done as a whole, or not."""


class Database:
    """One connection to the database of jobs, with its tables. Everything it runs is a ``transaction``.

    Raises:
        JobsUnavailableError: it is no database of jobs, of another format, or does not answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        try:
            with self._errors(), self._engine.begin() as connection:
                make_tables(connection)
        except BaseException:
            engine.dispose()
            raise

    @classmethod
    def in_file(cls, path: Path) -> Database:
        """Open a folder's SQLite, made for this user alone if it is new; no other process may have it."""
        with storage_errors():
            os.close(private_file(path))
            raw = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with storage_errors():
                # One connection in all: the index of the log is in memory, so there is no third file to run full.
                raw.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
                engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool, hide_parameters=True)
                with engine.connect() as connection:
                    check_format(connection)
                # Before the first table: afterwards some have no effect.
                for pragma in _PRAGMAS:
                    raw.execute(f"PRAGMA {pragma}").fetchall()
                event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            return cls(engine)
        except (sqlite3.DatabaseError, DBAPIError) as error:
            raw.close()
            inner = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(inner, sqlite3.OperationalError):
                raise
            raise JobsUnavailableError(
                "the jobs folder's database is not one: move the folder away, the server makes a new one"
            ) from error
        except BaseException:
            raw.close()
            raise

    @classmethod
    def at_url(cls, url: str, password_file: Path | None = None, *, timeout_s: float = 10.0) -> Database:
        """Open a PostgreSQL by its URL, which no message has: there may be a password in it.

        Args:
            password_file: has the password, in place of the URL.
            timeout_s: that it may take to connect, for one statement, and between two of a transaction: a server that
                hangs in the middle of one would keep its locks, and so its jobs from the others.
        """
        return cls(open_engine(url, password_file, timeout_s=timeout_s))

    def close(self) -> None:
        """Close the connection; of SQLite, the log goes into the database."""
        if self.is_sqlite:
            with suppress(sqlite3.Error):
                self.raw.close()
        self._engine.dispose()

    @property
    def raw(self) -> sqlite3.Connection:
        connection = self._engine.raw_connection()
        raw = connection.driver_connection
        connection.close()
        assert isinstance(raw, sqlite3.Connection)
        return raw

    @property
    def now(self) -> ColumnElement[Any]:
        """Seconds since the epoch by the database's clock: the one that all servers share."""
        if self.is_sqlite:
            return (func.julianday("now") - 2440587.5) * 86400.0
        return func.extract("epoch", func.clock_timestamp())

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection; what runs on it is carried out as a whole, or not at all.

        Raises:
            StorageFullError: the disk has no room. JobsUnavailableError: the database does not answer.
            IntegrityError: of SQLAlchemy, a key that is there already.
        """
        try:
            with self._errors(), self._engine.begin() as connection:
                yield connection
        except BaseException:
            # The log's room, if the disk had none, is there for the next try.
            self.empty_log()
            raise

    def give_back(self) -> bool:
        """Give some room that nothing needs back to the disk; false once there is none."""
        if not self.is_sqlite:
            return False
        with storage_errors():
            if self.raw.execute("PRAGMA freelist_count").fetchone()[0]:
                self.raw.execute(f"PRAGMA incremental_vacuum({_SLICE_PAGES})").fetchall()
                return True
        self.empty_log()
        return False

    def empty_log(self) -> None:
        """Bring SQLite's log into the database."""
        if self.is_sqlite:
            with suppress(sqlite3.Error):  # a full disk may put it off
                self.raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with storage_errors():
                try:
                    yield
                except DBAPIError as error:
                    if self.is_sqlite and isinstance(error.orig, sqlite3.OperationalError):
                        raise error.orig from error
                    raise
        except IntegrityError:
            raise
        except DBAPIError as error:
            if self.is_sqlite:
                raise
            code = getattr(error.orig, "sqlstate", None)
            if code in _DISK_FULL:
                raise StorageFullError("the jobs' database has no room: try again later, or remove jobs") from error
            if not (code in _PASSING or isinstance(error, OperationalError | InterfaceError)):
                raise  # no other try carries it out
            kind = ConnectionLostError if error.connection_invalidated else JobsUnavailableError
            raise kind(UNANSWERED) from error
