"""The tables of jobs, as statements are built on them; ``migrations`` makes them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, Table, Text

_METADATA = MetaData()

#: One job each. ``fence`` grows with each claim: who writes for a job names the claim that it writes under.
JOBS = Table(
    "laplora_jobs",
    _METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", Text),
    Column("owner", Text),
    Column("idempotency_key", Text),
    Column("about", Text),
    Column("status", Text),
    Column("rows_done", Integer),
    Column("input_offset", BigInteger),
    Column("sums", Text),
    Column("error", Text),
    Column("result", Text),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("absent_s", Float),
    Column("paused", Text),
    Column("left_at", Float),
    Column("keeps_rows", Integer),
    Column("answer_bytes", BigInteger),
    Column("server", Text),
    Column("fence", Integer),
    Column("events", Integer),
)
#: One scored row each: where its true labels are, its numbers by method, and its answer; all JSON.
ROWS = Table(
    "laplora_rows",
    _METADATA,
    Column("job", Integer, primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("truth", Text),
    Column("methods", Text),
    Column("answer", Text),
)
BAD_ROWS = Table(
    "laplora_bad_rows",
    _METADATA,
    Column("job", Integer, primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("code", Text),
)
BEGUN = Table(
    "laplora_begun",
    _METADATA,
    Column("job", Integer, primary_key=True),
    Column("first", Integer, primary_key=True),
    Column("after", Integer, primary_key=True),
    Column("lone_tries", Integer),
)
#: What happened to a job, the newest of it: ``data`` is the job as the contract writes it, JSON.
EVENTS = Table(
    "laplora_events",
    _METADATA,
    Column("job", Integer, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("data", Text),
)
#: The servers that share the database, and when each was last heard of: seconds since the epoch, its own clock.
SERVERS = Table("laplora_servers", _METADATA, Column("id", Text, primary_key=True), Column("heard_at", Float))
