"""Jobs and their rows' answers in the database: every change is one transaction that is on disk when it returns.

A server writes for a job under its claim, which has a number that grows with each claim of the job, its fence. A write
under an older fence changes nothing and raises ClaimLostError: whatever a server believes, the last one to claim a job
is the only one that writes for it.

No transaction holds more rows than one chunk of a job, so SQLite's log stays short: the rows of a job that has ended
or was removed go afterwards, some at a time (``sweep``). No prompt is in the database, nor any part of one. Used from
one thread at a time.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, or_, select, true, update
from sqlalchemy.exc import IntegrityError

from service.errors import IdempotencyConflictError
from service.jobs.database import Database
from service.jobs.records import About, Job, Rows, ScoredRow, StoredStatus, Sums
from service.jobs.tables import BAD_ROWS, BEGUN, EVENTS, JOBS, ROWS, SERVERS
from service.scoring.labels import Truth

#: Most rows that one transaction removes.
_SLICE_ROWS = 256
#: How many of a job's newest events are kept.
KEPT_EVENTS = 500


class ClaimLostError(Exception):
    """The job is another server's by now, has ended, or is gone: what was to be written for it was not."""


class Store:
    """What is done to jobs, in a database. A method raises as ``Database.transaction``, and then changes nothing."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    # Jobs

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

    def add(self, job: Job, event: str) -> int:
        """Keep a new job, which nobody has claimed, and return its number.

        Raises:
            IdempotencyConflictError: its owner has another one of this key, which another server took in meanwhile.
        """
        values = {
            "id": job.id,
            "owner": job.owner,
            "idempotency_key": job.idempotency_key,
            "about": job.about.model_dump_json(),
            "sums": job.sums.model_dump_json(),
            "keeps_rows": int(job.about.keep_rows),
            "events": 1,
        }
        try:
            with self.database.transaction() as db:
                number = int(db.execute(insert(JOBS).values(values).returning(JOBS.c.number)).scalar_one())
                db.execute(insert(EVENTS).values(job=number, sequence=1, data=event))
                return number
        except IntegrityError:
            raise IdempotencyConflictError(
                "another server has just taken in a job with this Idempotency-Key: send it once more"
            ) from None

    def remove(self, jobs: Sequence[int]) -> None:
        """Remove jobs, a few at once; what of their rows is left is for ``sweep``."""
        with self.database.transaction() as db:
            db.execute(delete(JOBS).where(JOBS.c.number.in_(jobs)))

    # Claims

    def hear(self, server: str, *, alone: bool, lease_s: float) -> int:
        """Note that a server lives, and forget those that were not heard of for ``lease_s``; return how many live.

        Args:
            alone: no other server can live: it has the folder of a former one.
        """
        now = self.database.now
        with self.database.transaction() as db:
            gone = SERVERS.c.id != server if alone else SERVERS.c.heard_at < now - lease_s
            db.execute(delete(SERVERS).where(gone))
            if db.execute(update(SERVERS).where(SERVERS.c.id == server).values(heard_at=now)).rowcount == 0:
                db.execute(insert(SERVERS).values(id=server, heard_at=now))
            return int(db.execute(select(func.count()).select_from(SERVERS)).scalar_one())

    def leave(self, server: str) -> None:
        """Forget a server that leaves; its jobs are anybody's."""
        with self.database.transaction() as db:
            db.execute(update(JOBS).where(JOBS.c.server == server).values(server=None))
            db.execute(delete(SERVERS).where(SERVERS.c.id == server))

    def claim(self, server: str, most: int, *, without: Sequence[int] = (), most_left: int = 0) -> list[int]:
        """Make at most so many unfinished jobs that no living server has this one's; return their numbers.

        Args:
            without: numbers of jobs that it runs, or cannot run for now. Another of its own, which it let go of, is
                free.
            most_left: of jobs that another server left, so many beside.

        Servers that claim at once get different jobs, and none waits for another (PostgreSQL's SKIP LOCKED; SQLite's
        transactions come one after the other).
        """
        living = select(SERVERS.c.id)
        free = (
            select(JOBS.c.number)
            .where(JOBS.c.status == "queued", JOBS.c.number.not_in(without))
            .where(or_(JOBS.c.server.is_(None), JOBS.c.server == server, JOBS.c.server.not_in(living)))
            .order_by(JOBS.c.number)
            .with_for_update(skip_locked=True)
        )
        with self.database.transaction() as db:
            numbers: list[int] = []
            for which, limit in ((JOBS.c.left_at.is_(None), most), (JOBS.c.left_at.is_not(None), most_left)):
                if limit > 0:
                    numbers += db.execute(free.where(which).limit(limit)).scalars()
            if numbers:
                mine = update(JOBS).where(JOBS.c.number.in_(numbers))
                db.execute(mine.values(server=server, fence=JOBS.c.fence + 1))
            return numbers

    def release(self, job: int, fence: int) -> None:
        """Let another server have a job; nothing of it may be under way."""
        with self.database.transaction() as db:
            db.execute(update(JOBS).where(JOBS.c.number == job, JOBS.c.fence == fence).values(server=None))

    def left_s(self, job: int) -> float:
        """Return for how many seconds no server that claimed a job has had what it needs; 0 where one has."""
        with self.database.transaction() as db:
            asked = select(self.database.now - JOBS.c.left_at).where(JOBS.c.number == job)
            return float(db.execute(asked).scalar() or 0.0)

    def leave_job(self, job: int, paused: Mapping[str, Any], event: str | None, *, fence: int) -> tuple[float, int]:
        """Let another server have a job that this one cannot run; return since when it waits, and its newest event.

        Args:
            paused: what it waits for; event: what tells of that, None where nothing new is to tell.

        Raises:
            ClaimLostError: nothing was kept.
        """
        with self.database.transaction() as db:
            values = {
                "server": None,
                "paused": _json(paused),
                "left_at": func.coalesce(JOBS.c.left_at, self.database.now),
            }
            left = update(JOBS).where(*_mine(job, fence)).values(values).returning(JOBS.c.left_at, JOBS.c.events)
            found = db.execute(left).one_or_none()
            if found is None:
                raise ClaimLostError
            return found.left_at, found.events if event is None else _add_event(db, job, event)

    # A job goes on

    def add_rows(
        self,
        job: int,
        rows: Rows,
        *,
        fence: int,
        scored: Sequence[ScoredRow],
        bad: Mapping[int, str],
        sums: Sums,
        input_offset: int,
        started_at: float,
        event: str,
    ) -> int:
        """Keep the answers of the next rows, all or none; return the number of the event that tells of them.

        Raises:
            ClaimLostError: also where they are not the next ones: perhaps they are on disk already, by a call whose
                answer was lost. Who claims the job anew learns how far it is.
        """
        first, after = rows
        with self.database.transaction() as db:
            values = {
                "rows_done": after,
                "input_offset": input_offset,
                "sums": sums.model_dump_json(),
                "started_at": func.coalesce(JOBS.c.started_at, started_at),
                "absent_s": 0.0,
                "paused": None,
                "left_at": None,
                "answer_bytes": JOBS.c.answer_bytes + answer_bytes(scored),
            }
            mine = _mine(job, fence)
            if db.execute(update(JOBS).where(*mine, JOBS.c.rows_done == first).values(values)).rowcount != 1:
                raise ClaimLostError
            if scored:
                db.execute(
                    insert(ROWS),
                    [
                        {
                            "job": job,
                            "row": one.row,
                            "truth": _json(one.truth),
                            "methods": _json(one.methods),
                            "answer": one.answer,
                        }
                        for one in scored
                    ],
                )
            _add_bad(db, job, bad)
            db.execute(delete(BEGUN).where(BEGUN.c.job == job, BEGUN.c.after <= after))
            return _add_event(db, job, event)

    def add_event(self, job: int, event: str, *, fence: int | None) -> int:
        """Keep what happened to a job beside its rows, and return the event's number.

        Args:
            fence: None: whoever has claimed it.

        Raises:
            ClaimLostError: nothing was kept; ``fence`` None: the job is gone.
        """
        with self.database.transaction() as db:
            whose = true() if fence is None else JOBS.c.fence == fence
            if db.execute(select(JOBS.c.number).where(JOBS.c.number == job, whose).with_for_update()).scalar() is None:
                raise ClaimLostError
            return _add_event(db, job, event)

    def set_begun(self, job: int, begun: Mapping[Rows, int], *, fence: int) -> None:
        """Keep which rows of a job are under way; ``add_rows`` forgets those that are over.

        Raises:
            ClaimLostError: nothing was kept.
        """
        with self.database.transaction() as db:
            # Locked: another server's claim waits for this, or this one sees it.
            if db.execute(select(JOBS.c.number).where(*_mine(job, fence)).with_for_update()).scalar() is None:
                raise ClaimLostError
            db.execute(delete(BEGUN).where(BEGUN.c.job == job))
            if begun:
                db.execute(
                    insert(BEGUN),
                    [{"job": job, "first": r[0], "after": r[1], "lone_tries": tries} for r, tries in begun.items()],
                )

    def set_absent(self, job: int, absent_s: float, *, fence: int) -> None:
        """Keep for how many seconds a job's artifact has not been loaded; of another server's job nothing is kept."""
        with self.database.transaction() as db:
            db.execute(update(JOBS).where(*_mine(job, fence)).values(absent_s=absent_s))

    def set_paused(self, job: int, paused: Mapping[str, Any] | None, event: str, *, fence: int) -> int:
        """Keep what a job waits for, and the event that tells of it; ClaimLostError as of ``add_event``.

        Args:
            paused: None: it runs.
        """
        with self.database.transaction() as db:
            values: dict[str, Any] = {"paused": None, "left_at": None} if paused is None else {"paused": _json(paused)}
            if db.execute(update(JOBS).where(*_mine(job, fence)).values(values)).rowcount != 1:
                raise ClaimLostError
            return _add_event(db, job, event)

    def end(
        self,
        job: int,
        status: StoredStatus,
        *,
        finished_at: float,
        event: str,
        fence: int | None = None,
        error: Mapping[str, Any] | None = None,
        result: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> int:
        """Let a job end that has not; return the number of the event that tells of it.

        Of a cancelled job no rows are kept; of another, those that its upload asked to keep. The rest is for ``sweep``.

        Args:
            fence: None: whoever has claimed it; nobody has afterwards.

        Raises:
            ClaimLostError: it has ended before, or is another server's.
        """
        values: dict[str, Any] = {
            "status": status,
            "finished_at": finished_at,
            "error": None if error is None else _json(error),
            "result": result,
            "paused": None,
            "left_at": None,
            "server": None,
            "fence": JOBS.c.fence + 1,
        }
        if status == "cancelled":
            values["keeps_rows"] = 0
        with self.database.transaction() as db:
            mine = [JOBS.c.number == job, JOBS.c.status == "queued"]
            if fence is not None:
                mine.append(JOBS.c.fence == fence)
            if db.execute(update(JOBS).where(*mine).values(values)).rowcount != 1:
                raise ClaimLostError
            _add_bad(db, job, bad or {})
            db.execute(delete(BEGUN).where(BEGUN.c.job == job))
            return _add_event(db, job, event)

    # What is read

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


def _mine(job: int, fence: int) -> tuple[Any, ...]:
    return JOBS.c.number == job, JOBS.c.fence == fence, JOBS.c.status == "queued"


def _add_bad(db: Connection, job: int, bad: Mapping[int, str]) -> None:
    if not bad:
        return
    known = set(db.execute(select(BAD_ROWS.c.row).where(BAD_ROWS.c.job == job, BAD_ROWS.c.row.in_(bad))).scalars())
    new = [{"job": job, "row": row, "code": code} for row, code in sorted(bad.items()) if row not in known]
    if new:
        db.execute(insert(BAD_ROWS), new)


def _add_event(db: Connection, job: int, data: str) -> int:
    grown = update(JOBS).where(JOBS.c.number == job).values(events=JOBS.c.events + 1).returning(JOBS.c.events)
    sequence = int(db.execute(grown).scalar_one())
    db.execute(insert(EVENTS).values(job=job, sequence=sequence, data=data))
    db.execute(delete(EVENTS).where(EVENTS.c.job == job, EVENTS.c.sequence <= sequence - KEPT_EVENTS))
    return sequence


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


def answer_bytes(rows: Sequence[ScoredRow]) -> int:
    """Return how many bytes the database has of rows, their keys not counted."""
    return sum(len(_json(one.truth)) + len(_json(one.methods)) + len((one.answer or "").encode()) for one in rows)


def _truth(value: int | list[int]) -> Truth:
    return tuple(value) if isinstance(value, list) else value


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
