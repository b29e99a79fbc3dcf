"""A PostgreSQL that servers share, or a pooler before one: every wait for it ends, and no session has a state.

So transactions of one connection may come to different sessions, as behind PgBouncer in its mode ``transaction``: what
PostgreSQL is to bound is set in each transaction, for it alone, and no statement is prepared. Each wait of psycopg has
a deadline of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from laplora.errors import install
from service.errors import JobsUnavailableError

_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
#: How much later than PostgreSQL's own bound, which is an answer, a wait is over.
_LATER_S = 2.0


def open_engine(url: str, password_file: Path | None, *, timeout_s: float) -> Engine:
    """Return an engine of one connection. No message has the URL: there may be a password in it.

    Args:
        timeout_s: as of ``Database.at_url``.

    Raises:
        JobsUnavailableError: it is no URL of a PostgreSQL, psycopg is not installed, or the password cannot be read.
    """
    if url.startswith(("postgres://", "postgresql://")):
        url = "postgresql+psycopg://" + url.partition("://")[2]
    if not url.startswith("postgresql+psycopg://"):
        raise JobsUnavailableError("expected a jobs_url that begins with postgresql://: SQLite needs none")
    arguments: dict[str, Any] = {
        "connect_timeout": max(2, math.ceil(timeout_s)),
        "prepare_threshold": None,
        "tcp_user_timeout": math.ceil(1000 * timeout_s),
        **_KEEPALIVES,
        "application_name": "laplora",
    }
    try:
        address = make_url(url)
        if password_file is not None:
            address = address.set(password=_password(password_file))
        engine = create_engine(
            address,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args=arguments,
            # A statement's parameters are in no message, and so in no log.
            hide_parameters=True,
        )
    except ModuleNotFoundError:
        raise JobsUnavailableError(f"jobs_url needs psycopg: {install('postgres')}") from None
    except ArgumentError:
        raise JobsUnavailableError("jobs_url is no URL of a database: postgresql://USER@HOST/DATABASE") from None
    bounds = ("statement_timeout", "idle_in_transaction_session_timeout")
    calls = ", ".join(f"set_config('{name}', '{math.ceil(1000 * timeout_s)}', true)" for name in bounds)

    def bound(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT {calls}")

    connect = _bounded_connections(timeout_s + _LATER_S).connect
    event.listen(engine, "do_connect", lambda _dialect, _record, args, more: connect(*args, **more))
    event.listen(engine, "begin", bound)
    return engine


def _bounded_connections(wait_s: float) -> Any:
    """Return psycopg's class of connections; a wait for an answer ends after ``wait_s``, and the connection with it."""
    import psycopg

    class Bounded(psycopg.Connection[Any]):
        def wait(self, gen: Any, *arguments: Any, **more: Any) -> Any:
            return super().wait(self._until(gen, time.monotonic() + wait_s), *arguments, **more)

        def _until(self, gen: Generator[Any, Any, Any], end: float) -> Generator[Any, Any, Any]:
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    # Nothing is ready: so psycopg says at each of its intervals.
                    if not ready and time.monotonic() > end:
                        self.pgconn.finish()
                        raise psycopg.OperationalError("no answer came in time")
                    wanted = gen.send(ready)
            except StopIteration as over:
                return over.value

    return Bounded


def _password(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise JobsUnavailableError(f"jobs_password_file cannot be read ({type(error).__name__})") from None
