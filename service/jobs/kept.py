"""What is read of jobs in the database, and the removal of what is no job's any more. ``Store`` writes them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, func, or_, select, true

from service.jobs.database import Database
from service.jobs.records import About, Job, Rows, ScoredRow, Sums
from service.jobs.tables import BAD_ROWS, BEGUN, EVENTS, JOBS, ROWS
from service.scoring.labels import Truth

#: Most rows that one transaction removes.
_SLICE_ROWS = 256


class Kept:
    """What a database has of jobs. A method raises as ``Database.transaction``."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def jobs(self, numbers: Sequence[int] | None = None) -> list[Job]:
        """Return every job, or those of these numbers, in the order of their uploads."""
        asked = numbers is None
        bad_counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        begun: defaultdict[int, dict[Rows, int]] = defaultdict(dict)
        with self.database.transaction() as db:
            counts = select(BAD_ROWS.c.job, BAD_ROWS.c.code, func.count()).group_by(BAD_ROWS.c.job, BAD_ROWS.c.code)
            for number, code, count in db.execute(counts.where(true() if asked else BAD_ROWS.c.job.in_(numbers or ()))):
                bad_counts[number][code] = count
            ranges = select(BEGUN.c.job, BEGUN.c.first, BEGUN.c.after, BEGUN.c.lone_tries)
            for number, first, after, tries in db.execute(
                ranges.where(true() if asked else BEGUN.c.job.in_(numbers or ()))
            ):
                begun[number][first, after] = tries
            found = db.execute(
                select(JOBS).where(true() if asked else JOBS.c.number.in_(numbers or ())).order_by(JOBS.c.number)
            ).mappings()
            return [_job(row, bad_counts[row["number"]], begun[row["number"]]) for row in found]

    def versions(self) -> dict[int, tuple[int, int]]:
        """Return of each job, by number, its fence and its newest event: together they tell of any change."""
        with self.database.transaction() as db:
            rows = db.execute(select(JOBS.c.number, JOBS.c.fence, JOBS.c.events))
            return {number: (fence, events) for number, fence, events in rows}

    def rows(self, job: int, after: int, count: int) -> list[ScoredRow]:
        """Return at most ``count`` scored rows of numbers above ``after``, in order, without their answers."""
        asked = select(ROWS.c.row, ROWS.c.truth, ROWS.c.methods).where(ROWS.c.job == job, ROWS.c.row > after)
        with self.database.transaction() as db:
            rows = db.execute(asked.order_by(ROWS.c.row).limit(count))
            return [ScoredRow(row, _truth(json.loads(truth)), json.loads(methods)) for row, truth, methods in rows]

    def answers(self, job: int, rows: Rows) -> list[ScoredRow]:
        """Return the scored rows of these numbers, in order, with their answers."""
        asked = select(ROWS.c.row, ROWS.c.truth, ROWS.c.methods, ROWS.c.answer).where(
            ROWS.c.job == job, ROWS.c.row >= rows[0], ROWS.c.row < rows[1]
        )
        with self.database.transaction() as db:
            found = db.execute(asked.order_by(ROWS.c.row))
            return [
                ScoredRow(row, _truth(json.loads(truth)), json.loads(methods), answer=answer)
                for row, truth, methods, answer in found
            ]

    def bad_rows(self, job: int, rows: Rows | None = None) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of the rows that could not be scored, in order, and the codes of why."""
        asked = select(BAD_ROWS.c.row, BAD_ROWS.c.code).where(BAD_ROWS.c.job == job).order_by(BAD_ROWS.c.row)
        if rows is not None:
            asked = asked.where(BAD_ROWS.c.row >= rows[0], BAD_ROWS.c.row < rows[1])
        with self.database.transaction() as db:
            return [(row, code) for row, code in db.execute(asked)]

    def result(self, job: int) -> str | None:
        """Return a job's result, JSON; None where it has none."""
        with self.database.transaction() as db:
            return db.execute(select(JOBS.c.result).where(JOBS.c.number == job)).scalar()

    def events(self, job: int, after: int, most: int) -> list[tuple[int, str]]:
        """Return at most ``most`` of a job's events after this one, in order: their numbers and their data."""
        asked = select(EVENTS.c.sequence, EVENTS.c.data).where(EVENTS.c.job == job, EVENTS.c.sequence > after)
        with self.database.transaction() as db:
            found = db.execute(asked.order_by(EVENTS.c.sequence).limit(most))
            return [(sequence, data) for sequence, data in found]

    # What nobody needs any more

    def sweep(self) -> bool:
        """Remove some of what is no job's any more, and give its room back to the disk; false once nothing is left."""
        needs_rows = or_(JOBS.c.status == "queued", JOBS.c.keeps_rows == 1)
        for table, key, needed in (
            (ROWS, ROWS.c.row, needs_rows),
            (BAD_ROWS, BAD_ROWS.c.row, true()),
            (EVENTS, EVENTS.c.sequence, true()),
        ):
            with self.database.transaction() as db:
                job = _leftover(db, table, needed)
                if job is not None:
                    first = select(key).where(table.c.job == job).order_by(key).limit(_SLICE_ROWS)
                    db.execute(delete(table).where(table.c.job == job, key.in_(first)))
                    return True
        return self.database.give_back()


def _leftover(db: Connection, table: Table, needed: Any) -> int | None:
    """Return a job that has rows in a table and does not need them, by a look at each job that has some."""
    job = -1
    while True:
        found = db.execute(select(func.min(table.c.job)).where(table.c.job > job)).scalar()
        if found is None:
            return None
        job = int(found)
        if db.execute(select(JOBS.c.number).where(JOBS.c.number == job, needed)).scalar() is None:
            return job


def _job(row: Mapping[Any, Any], bad_counts: Counter[str], begun: dict[Rows, int]) -> Job:
    return Job(
        id=row["id"],
        owner=row["owner"],
        idempotency_key=row["idempotency_key"],
        about=About.model_validate_json(row["about"]),
        number=row["number"],
        status=row["status"],
        rows_done=row["rows_done"],
        bad_counts=bad_counts,
        begun=begun,
        input_offset=row["input_offset"],
        sums=Sums.model_validate_json(row["sums"]),
        absent_s=row["absent_s"],
        error=row["error"] and json.loads(row["error"]),
        paused=row["paused"] and json.loads(row["paused"]),
        left_at=row["left_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        keeps_rows=bool(row["keeps_rows"]),
        server=row["server"],
        fence=row["fence"],
        answer_bytes=row["answer_bytes"],
        events=row["events"],
    )


def _truth(value: int | list[int]) -> Truth:
    return tuple(value) if isinstance(value, list) else value
