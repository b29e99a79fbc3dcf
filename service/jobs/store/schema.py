"""The tables of jobs, and the format that a database has them in: made whole, and of another format refused by name.

Additions, a table here or a field of a record, keep the format: a newer server adds what is missing, and an older one
goes on with what it knows, so that a rollback works. A change that an older server would misread raises it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    inspect,
    text,
)

from service.errors import JobsUnavailableError

FORMAT: Final = 9
_FORMAT_TABLE: Final = "laplora_jobs_format"
#: Any number that is ours: of servers that start at once one makes the tables.
_LOCK: Final = 7_251_901
_METADATA: Final = MetaData()


def _key(name: str) -> Column[int]:
    return Column(name, Integer, primary_key=True, autoincrement=False)


def _table(name: str, *columns: Column[int] | Column[str] | Column[float] | UniqueConstraint) -> Table:
    """Return a table whose rows are found by their key alone."""
    return Table(name, _METADATA, *columns, sqlite_with_rowid=False)


#: One job each. ``fence`` grows with each claim: who writes for a job names the claim that it writes under. ``changes``
#: grows with each change that other servers show.
JOBS: Final = Table(
    "laplora_jobs",
    _METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("about", Text, nullable=False),
    Column("status", Text, nullable=False, server_default="queued"),
    Column("rows_done", Integer, nullable=False, server_default="0"),
    Column("input_offset", BigInteger, nullable=False, server_default="0"),
    Column("sums", Text, nullable=False),
    Column("error", Text),
    Column("result", Text),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("absent_s", Double, nullable=False, server_default="0"),
    Column("paused", Text),
    Column("left_at", Double),
    Column("keeps_rows", Integer, nullable=False),
    Column("answer_bytes", BigInteger, nullable=False, server_default="0"),
    Column("server", Text),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("changes", Integer, nullable=False, server_default="0"),
    UniqueConstraint("owner", "idempotency_key"),
    # A number is never given twice: rows of a removed job may still be there.
    sqlite_autoincrement=True,
)
#: One scored row each: where its true labels are (null: it has none), its numbers by method, its answer; all JSON.
ROWS: Final = _table(
    "laplora_rows",
    _key("job"),
    _key("row"),
    Column("truth", Text, nullable=False),
    Column("methods", Text, nullable=False),
    Column("answer", Text),
)
BAD_ROWS: Final = _table("laplora_bad_rows", _key("job"), _key("row"), Column("code", Text, nullable=False))
BEGUN: Final = _table(
    "laplora_begun", _key("job"), _key("first"), _key("after"), Column("lone_tries", Integer, nullable=False)
)
#: The servers that share the database, and when each was last heard of: seconds since the epoch, its own clock.
SERVERS: Final = _table(
    "laplora_servers", Column("id", Text, primary_key=True), Column("heard_at", Double, nullable=False)
)
#: Uploads that are to be removed, each from a time on: seconds since the epoch, the database's clock.
DISCARDS: Final = _table(
    "laplora_discards", Column("id", Text, primary_key=True), Column("due_at", Double, nullable=False)
)

#: Changes of artifacts, one each (``service.changes``), as JSON in ``record``.
CHANGES: Final = _table(
    "laplora_changes",
    Column("id", Text, primary_key=True),
    Column("server", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("key", Text),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("record", Text, nullable=False),
    UniqueConstraint("owner", "key"),
)

#: The state that a deployment serves (``service.deployment.served``), as JSON; ``version`` grows with each change.
SERVED: Final = _table(
    "laplora_served",
    Column("deployment", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("record", Text, nullable=False),
)

#: Answers that may still be labelled, one each (``service.deployment.answers``): ``answered`` in seconds of the epoch,
#: ``right`` the bits of the right labels in hexadecimal. ``told`` numbers the labels of a deployment, as TOLD counts,
#: and ``first_told`` is the number of an answer's first label, whose place a corrected one keeps.
ANSWERS: Final = Table(
    "laplora_answers",
    _METADATA,
    Column("id", Text, primary_key=True),
    Column("deployment", Text, nullable=False),
    Column("answered", Double, nullable=False),
    Column("record", Text, nullable=False),
    Column("right", Text),
    Column("first_told", BigInteger),
    Column("told", BigInteger),
    Index("laplora_answers_by_age", "deployment", "answered"),
    Index("laplora_answers_by_label", "deployment", "told"),
    Index("laplora_answers_by_first_label", "deployment", "first_told"),
)
TOLD: Final = _table(
    "laplora_told", Column("deployment", Text, primary_key=True), Column("told", BigInteger, nullable=False)
)


def make_tables(connection: Connection) -> None:
    """Make the tables that a database has not, in the transaction that the connection is in.

    Raises:
        JobsUnavailableError: as of ``check_format``.
    """
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    version = check_format(connection)
    _METADATA.create_all(connection, checkfirst=version != 0)
    if version == FORMAT:
        return
    if postgresql:
        connection.execute(text(f"CREATE TABLE {_FORMAT_TABLE} AS SELECT {FORMAT} AS format"))
    else:
        connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT}")


def check_format(connection: Connection) -> int:
    """Return a database's format, 0 of one without jobs.

    Raises:
        JobsUnavailableError: this server does not read it, or there are tables of jobs that do not say it.
    """
    if connection.dialect.name == "sqlite":
        version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    elif connection.execute(text("SELECT to_regclass(:name)"), {"name": _FORMAT_TABLE}).scalar_one() is None:
        version = 0
    else:
        version = int(connection.execute(text(f"SELECT format FROM {_FORMAT_TABLE}")).scalar_one())
    unmarked = version == 0 and any(inspect(connection).has_table(name) for name in _METADATA.tables)
    if unmarked or version not in (0, FORMAT):
        raise JobsUnavailableError(
            f"the jobs' database has format {version}, this server reads format {FORMAT}: give it another jobs_dir, or "
            "another jobs_url; the uploads of its jobs, which are prompts, stay until you delete the jobs folder too"
        )
    return version
