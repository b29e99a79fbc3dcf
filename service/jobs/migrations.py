"""How the database of jobs came to be as it is: one step a format, applied in order, with its number or not at all.

A database of a format that is none of these, or a later one, is refused by name and left as it is. Of SQLite the
format is ``PRAGMA user_version``, so that servers of the releases before this one refuse it by name too.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from service.errors import JobsUnavailableError

_FORMAT_TABLE: Final = "laplora_jobs_format"
#: Any number that is ours: servers that start at once migrate one after the other.
_LOCK: Final = 7_251_901
#: What the dialects write differently.
_WORDS: Final = {
    "sqlite": {
        "key": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "real": "REAL",
        "big": "INTEGER",
        "end": "STRICT",
        "first": "",
    },
    "postgresql": {
        "key": "INTEGER GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "real": "DOUBLE PRECISION",
        "big": "BIGINT",
        "end": "",
        # Of the first release there is SQLite alone. A PostgreSQL can have others' tables.
        "first": "laplora_",
    },
}
#: Tables whose rows are found by their key alone.
_BY_KEY: Final = {"sqlite": "STRICT, WITHOUT ROWID", "postgresql": ""}
_SQLITE_ONLY: Final = "/* SQLite only */"
_FIRST_TABLES: Final = ("jobs", "rows", "bad_rows", "begun")

#: By format, what makes it from the one before. 5 is the format of the first release.
STEPS: Final[dict[int, tuple[str, ...]]] = {
    5: (
        """CREATE TABLE {first}jobs (
            number {key},
            id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            idempotency_key TEXT,
            about TEXT NOT NULL,
            status TEXT NOT NULL DEFAULT 'queued',
            rows_done INTEGER NOT NULL DEFAULT 0,
            input_offset {big} NOT NULL DEFAULT 0,
            sums TEXT NOT NULL,
            error TEXT,
            result TEXT,
            started_at {real},
            finished_at {real},
            absent_s {real} NOT NULL DEFAULT 0,
            UNIQUE (owner, idempotency_key)
        ) {end}""",
        """CREATE TABLE {first}rows (
            job INTEGER NOT NULL,
            "row" INTEGER NOT NULL,
            truth TEXT NOT NULL,
            methods TEXT NOT NULL,
            PRIMARY KEY (job, "row")
        ) {by_key}""",
        """CREATE TABLE {first}bad_rows (
            job INTEGER NOT NULL,
            "row" INTEGER NOT NULL,
            code TEXT NOT NULL,
            PRIMARY KEY (job, "row")
        ) {by_key}""",
        """CREATE TABLE {first}begun (
            job INTEGER NOT NULL,
            first INTEGER NOT NULL,
            after INTEGER NOT NULL,
            lone_tries INTEGER NOT NULL,
            PRIMARY KEY (job, first, after)
        ) {by_key}""",
    ),
    # Every row's answer, the history of events, and claims: which server runs a job.
    6: (
        *(
            f"{_SQLITE_ONLY} ALTER TABLE {name} RENAME TO laplora_{name}"
            for name in ("jobs", "rows", "bad_rows", "begun")
        ),
        "ALTER TABLE laplora_jobs ADD COLUMN paused TEXT",
        "ALTER TABLE laplora_jobs ADD COLUMN keeps_rows INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE laplora_jobs ADD COLUMN answer_bytes {big} NOT NULL DEFAULT 0",
        "ALTER TABLE laplora_jobs ADD COLUMN server TEXT",
        "ALTER TABLE laplora_jobs ADD COLUMN fence INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE laplora_jobs ADD COLUMN events INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE laplora_rows ADD COLUMN answer TEXT",
        """CREATE TABLE laplora_events (
            job INTEGER NOT NULL,
            sequence INTEGER NOT NULL,
            data TEXT NOT NULL,
            PRIMARY KEY (job, sequence)
        ) {by_key}""",
        "CREATE TABLE laplora_servers (id TEXT NOT NULL PRIMARY KEY, heard_at {real} NOT NULL) {by_key}",
    ),
    # Since when a job waits for a server that has what it needs.
    7: ("ALTER TABLE laplora_jobs ADD COLUMN left_at {real}",),
}
FORMAT: Final = max(STEPS)


def read_format(connection: Connection) -> int:
    """Return the format of a database, 0 of one without jobs."""
    if connection.dialect.name == "sqlite":
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if connection.execute(text("SELECT to_regclass(:name)"), {"name": _FORMAT_TABLE}).scalar_one() is None:
        return 0
    return int(connection.execute(text(f"SELECT format FROM {_FORMAT_TABLE}")).scalar_one())


def check_format(connection: Connection) -> int:
    """Return a database's format.

    Raises:
        JobsUnavailableError: it is none that this server can bring up to date.
    """
    found = read_format(connection)
    if found != 0 and found not in STEPS:
        raise JobsUnavailableError(
            f"the jobs' database has format {found}, this server reads format {FORMAT}: give it another jobs_dir, or "
            "another jobs_url"
        )
    return found


def migrate(connection: Connection, *, upto: int = FORMAT) -> tuple[int, int]:
    """Bring a database up to date in the transaction that the connection is in; return its format before and now.

    Raises:
        JobsUnavailableError: as of ``check_format``.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    before = check_format(connection)
    words = _WORDS[connection.dialect.name] | {"by_key": _BY_KEY[connection.dialect.name]}
    for number, statements in STEPS.items():
        if before < number <= upto:
            for statement in statements:
                if statement.startswith(_SQLITE_ONLY) and connection.dialect.name != "sqlite":
                    continue
                connection.exec_driver_sql(statement.format(**words))
    now = max(before, upto)
    if now != before:
        _write_format(connection, before, now)
    return before, now


def _write_format(connection: Connection, before: int, now: int) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {now}")
        return
    if before == 0:
        connection.exec_driver_sql(f"CREATE TABLE {_FORMAT_TABLE} (format INTEGER NOT NULL)")
        connection.execute(text(f"INSERT INTO {_FORMAT_TABLE} VALUES (:now)"), {"now": now})
    else:
        connection.execute(text(f"UPDATE {_FORMAT_TABLE} SET format = :now"), {"now": now})
