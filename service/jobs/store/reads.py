"""Reads of jobs in the database, and the removal of records without a job. ``JobTables`` writes them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, or_, select, true

from laplora.answers.labels import Truth
from service.jobs.store.database import Database
from service.jobs.store.records import About, Job, RowRange, ScoredRow, Sums
from service.jobs.store.schema import BAD_ROWS, BEGUN, JOBS, ROWS

#: Most rows that one transaction removes.
_SLICE_ROWS = 256


class Reads:
    """The records of jobs in a database. A method raises as ``Database.transaction``."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def jobs(self, numbers: Sequence[int] | None = None) -> list[Job]:
        """Return every job, or those of these numbers, in the order of their uploads."""
        bad_counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        begun: defaultdict[int, dict[RowRange, int]] = defaultdict(dict)

        def among(column: ColumnElement[int]) -> ColumnElement[bool]:
            return true() if numbers is None else column.in_(numbers)

        counts = select(BAD_ROWS.c.job, BAD_ROWS.c.code, func.count()).where(among(BAD_ROWS.c.job))
        jobs = select(*(column for column in JOBS.c if column is not JOBS.c.result)).where(among(JOBS.c.number))
        with self.database.transaction() as db:
            for number, code, count in db.execute(counts.group_by(BAD_ROWS.c.job, BAD_ROWS.c.code)):
                bad_counts[number][code] = count
            for number, first, after, tries in db.execute(select(BEGUN).where(among(BEGUN.c.job))):
                begun[number][first, after] = tries
            rows = db.execute(jobs.order_by(JOBS.c.number)).mappings()
            return [_job(row, bad_counts[row["number"]], begun[row["number"]]) for row in rows]

    def versions(self) -> dict[int, tuple[int, int]]:
        """Return of each job, by number, its fence and how often it has changed."""
        with self.database.transaction() as db:
            rows = db.execute(select(JOBS.c.number, JOBS.c.fence, JOBS.c.changes))
            return {number: (fence, changes) for number, fence, changes in rows}

    def number(self, job_id: str) -> int | None:
        """Return the number of the job of this id; None where there is none."""
        with self.database.transaction() as db:
            return db.execute(select(JOBS.c.number).where(JOBS.c.id == job_id)).scalar()

    def rows(self, job: int, after: int, count: int) -> list[ScoredRow]:
        """Return at most ``count`` labelled rows of numbers above ``after``, in order, without their answers."""
        query = select(ROWS.c.row, ROWS.c.truth, ROWS.c.methods).where(ROWS.c.job == job, ROWS.c.row > after)
        query = query.where(ROWS.c.truth != "null")
        with self.database.transaction() as db:
            rows = db.execute(query.order_by(ROWS.c.row).limit(count))
            return [ScoredRow(row, _truth(json.loads(truth)), json.loads(methods)) for row, truth, methods in rows]

    def answers(self, job: int, rows: RowRange) -> list[ScoredRow]:
        """Return the scored rows of these numbers, in order, with their answers."""
        query = select(ROWS.c.row, ROWS.c.truth, ROWS.c.methods, ROWS.c.answer).where(
            ROWS.c.job == job, ROWS.c.row >= rows[0], ROWS.c.row < rows[1]
        )
        with self.database.transaction() as db:
            stored = db.execute(query.order_by(ROWS.c.row))
            return [
                ScoredRow(row, _truth(json.loads(truth)), json.loads(methods), answer=answer)
                for row, truth, methods, answer in stored
            ]

    def bad_rows(self, job: int, rows: RowRange | None = None) -> list[tuple[int, str]]:
        """Return the numbers, from 0, of the rows that could not be scored, in order, and the codes of why."""
        query = select(BAD_ROWS.c.row, BAD_ROWS.c.code).where(BAD_ROWS.c.job == job).order_by(BAD_ROWS.c.row)
        if rows is not None:
            query = query.where(BAD_ROWS.c.row >= rows[0], BAD_ROWS.c.row < rows[1])
        with self.database.transaction() as db:
            return [(row, code) for row, code in db.execute(query)]

    def result(self, job: int) -> str | None:
        """Return a job's result, JSON; None where it has none."""
        with self.database.transaction() as db:
            return db.execute(select(JOBS.c.result).where(JOBS.c.number == job)).scalar()

    # Removal of unneeded records

    def sweep(self) -> bool:
        """Remove some of what is no job's any more, and give its room back to the disk; false once nothing is left."""
        needs_rows = or_(JOBS.c.status == "queued", JOBS.c.keeps_rows == 1)
        for table, key, needed in (
            (ROWS, ROWS.c.row, needs_rows),
            (BAD_ROWS, BAD_ROWS.c.row, true()),
        ):
            with self.database.transaction() as db:
                job = _leftover(db, table, needed)
                if job is not None:
                    first = select(key).where(table.c.job == job).order_by(key).limit(_SLICE_ROWS)
                    db.execute(delete(table).where(table.c.job == job, key.in_(first)))
                    return True
        return self.database.give_back()


def _leftover(db: Connection, table: Table, needed: Any) -> int | None:
    """Return a job that has rows in a table and does not need them, by a look at each job with some, not each row."""
    having = select(func.min(table.c.job).label("job")).cte("having", recursive=True)
    later = select(func.min(table.c.job)).where(table.c.job > having.c.job).scalar_subquery()
    having = having.union_all(select(later).where(having.c.job.is_not(None)))
    needs = select(JOBS.c.number).where(JOBS.c.number == having.c.job, needed).exists()
    return db.execute(select(having.c.job).where(having.c.job.is_not(None), ~needs).limit(1)).scalar()


def _job(row: Mapping[Any, Any], bad_counts: Counter[str], begun: dict[RowRange, int]) -> Job:
    read: dict[str, Any] = {
        **row,
        "about": About.model_validate_json(row["about"]),
        "sums": Sums.model_validate_json(row["sums"]),
        "error": row["error"] and json.loads(row["error"]),
        "paused": row["paused"] and json.loads(row["paused"]),
        "keeps_rows": bool(row["keeps_rows"]),
    }
    return Job(**read, bad_counts=bad_counts, begun=begun)


def _truth(value: int | list[int] | None) -> Truth | None:
    return tuple(value) if isinstance(value, list) else value
