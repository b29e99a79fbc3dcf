"""What a write of a job goes by and leaves behind: its claim, its events, its bad rows; in whoever's transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from service.jobs.tables import BAD_ROWS, EVENTS, JOBS

#: How many of a job's newest events are kept.
KEPT_EVENTS = 500


class ClaimLostError(Exception):
    """The job is another server's by now, has ended, or is gone: what was to be written for it was not."""


def claimed(job: int, fence: int) -> tuple[Any, ...]:
    """Return the conditions of a write: the job has not ended, and nobody has claimed it since."""
    return JOBS.c.number == job, JOBS.c.fence == fence, JOBS.c.status == "queued"


def add_bad(db: Connection, job: int, bad: Mapping[int, str]) -> None:
    """Keep rows that could not be scored, by number, and the codes of why; what is known of one stays."""
    if not bad:
        return
    known = set(db.execute(select(BAD_ROWS.c.row).where(BAD_ROWS.c.job == job, BAD_ROWS.c.row.in_(bad))).scalars())
    new = [{"job": job, "row": row, "code": code} for row, code in sorted(bad.items()) if row not in known]
    if new:
        db.execute(insert(BAD_ROWS), new)


def add_event(db: Connection, job: int, data: str) -> int:
    """Keep an event of a job that is there, the newest ones alone, and return its number."""
    grown = update(JOBS).where(JOBS.c.number == job).values(events=JOBS.c.events + 1).returning(JOBS.c.events)
    sequence = int(db.execute(grown).scalar_one())
    db.execute(insert(EVENTS).values(job=job, sequence=sequence, data=data))
    db.execute(delete(EVENTS).where(EVENTS.c.job == job, EVENTS.c.sequence <= sequence - KEPT_EVENTS))
    return sequence


def compact(value: Any) -> str:
    """Return a value as JSON; ValueError for a number that is not finite."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
