"""Jobs and their rows' answers in the database: every change is one transaction that is on disk when it returns.

A server writes for a job under its claim, which has a number that grows with each claim of the job, its fence. A write
under an older fence changes nothing and raises ClaimLostError.

No transaction holds more rows than one chunk of a job, so SQLite's log stays short: the rows of a job that has ended
or was removed go afterwards, some at a time (``sweep``). No prompt is in the database, nor any part of one. Used from
one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import IdempotencyConflictError
from service.jobs.store.claims import ClaimLostError, Claims, claimed
from service.jobs.store.database import Database
from service.jobs.store.numbers import taken_bytes
from service.jobs.store.reads import Reads
from service.jobs.store.records import Job, RowRange, ScoredRow, StoredStatus, Sums, compact
from service.jobs.store.schema import BAD_ROWS, BEGUN, DISCARDS, JOBS, ROWS

#: Nobody takes longer to store an upload and add its job.
_STORING_S = 1800.0


class JobTables:
    """Changes of jobs in a database. A method raises as ``Database.transaction``, and then changes nothing.

    After JobsUnavailableError it may have, where the answer to its commit was lost: called again it changes no more.

    Attributes:
        reads: what is read of jobs; claims: which server has which; discards: the uploads to remove.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reads, self.claims, self.discards = Reads(database), Claims(database), Discards(database)

    def close(self) -> None:
        self.database.close()

    def add(self, job: Job) -> int:
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
        }
        try:
            with self.database.transaction() as db:
                db.execute(delete(DISCARDS).where(DISCARDS.c.id == job.id))
                return int(db.execute(insert(JOBS).values(values).returning(JOBS.c.number)).scalar_one())
        except IntegrityError:
            number = self.reads.number(job.id)
            if number is not None:
                return number  # by a call whose answer was lost
            self.discards.hurry(job.id)
            raise IdempotencyConflictError(
                "another server has just taken in a job with this Idempotency-Key: send it once more"
            ) from None

    def remove(self, jobs: Sequence[int]) -> None:
        """Remove jobs; their rows are for ``sweep``, their uploads for whoever reads ``discards``."""
        with self.database.transaction() as db:
            ids = db.execute(delete(JOBS).where(JOBS.c.number.in_(jobs)).returning(JOBS.c.id)).scalars().all()
            db.execute(delete(BEGUN).where(BEGUN.c.job.in_(jobs)))
            list_due(db, ids)

    def add_rows(
        self,
        job: int,
        rows: RowRange,
        *,
        fence: int,
        scored: Sequence[ScoredRow],
        bad: Mapping[int, str],
        sums: Sums,
        input_offset: int,
        started_at: float,
    ) -> None:
        """Keep the answers of the next rows, all or none.

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
                "changes": JOBS.c.changes + 1,
            }
            mine = claimed(job, fence)
            if db.execute(update(JOBS).where(*mine, JOBS.c.rows_done == first).values(values)).rowcount != 1:
                raise ClaimLostError
            if scored:
                db.execute(
                    insert(ROWS),
                    [
                        {
                            "job": job,
                            "row": one.row,
                            "truth": compact(one.truth),
                            "methods": compact(one.methods),
                            "answer": one.answer,
                        }
                        for one in scored
                    ],
                )
            _add_bad(db, job, bad)
            db.execute(delete(BEGUN).where(BEGUN.c.job == job, BEGUN.c.after <= after))

    def set_begun(self, job: int, begun: Mapping[RowRange, int], *, fence: int) -> None:
        """Keep which rows of a job are under way; ``add_rows`` forgets those that are over.

        Raises:
            ClaimLostError: nothing was kept.
        """
        with self.database.transaction() as db:
            # Locked: another server's claim waits for this, or this one sees it.
            if db.execute(select(JOBS.c.number).where(*claimed(job, fence)).with_for_update()).scalar() is None:
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
            db.execute(update(JOBS).where(*claimed(job, fence)).values(absent_s=absent_s))

    def set_paused(self, job: int, paused: Mapping[str, Any] | None, *, fence: int) -> None:
        """Keep what a job waits for; None: it waits for nothing.

        Raises:
            ClaimLostError: nothing was kept.
        """
        values: dict[str, Any] = {"changes": JOBS.c.changes + 1, "paused": None, "left_at": None}
        if paused is not None:
            values = {"changes": JOBS.c.changes + 1, "paused": compact(paused)}
        with self.database.transaction() as db:
            if db.execute(update(JOBS).where(*claimed(job, fence)).values(values)).rowcount != 1:
                raise ClaimLostError

    def end(
        self,
        job: int,
        status: StoredStatus,
        *,
        finished_at: float,
        fence: int | None = None,
        error: Mapping[str, Any] | None = None,
        result: str | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        """Let a job end that has not.

        A cancelled job keeps no rows; another one keeps those that its upload asked to keep. The rest is for ``sweep``,
        and an upload that is not kept for whoever reads ``discards``.

        Args:
            fence: None: whoever has claimed it; nobody has afterwards.

        Raises:
            ClaimLostError: it has ended before, or is another server's.
        """
        values: dict[str, Any] = {
            "status": status,
            "finished_at": finished_at,
            "error": None if error is None else compact(error),
            "result": result,
            "paused": None,
            "left_at": None,
            "server": None,
            "fence": JOBS.c.fence + 1,
            "changes": JOBS.c.changes + 1,
        }
        if status == "cancelled":
            values["keeps_rows"] = 0
        with self.database.transaction() as db:
            mine = [JOBS.c.number == job, JOBS.c.status == "queued"]
            if fence is not None:
                mine.append(JOBS.c.fence == fence)
            ended = update(JOBS).where(*mine).values(values).returning(JOBS.c.id, JOBS.c.keeps_rows)
            row = db.execute(ended).one_or_none()
            if row is None:
                raise ClaimLostError
            if not row.keeps_rows:
                list_due(db, [row.id])
            _add_bad(db, job, bad or {})
            db.execute(delete(BEGUN).where(BEGUN.c.job == job))


def _add_bad(db: Connection, job: int, bad: Mapping[int, str]) -> None:
    """Keep rows that could not be scored, by number, and the codes of why; what is on disk of one stays."""
    if not bad:
        return
    there = set(db.execute(select(BAD_ROWS.c.row).where(BAD_ROWS.c.job == job, BAD_ROWS.c.row.in_(bad))).scalars())
    new = [{"job": job, "row": row, "code": code} for row, code in sorted(bad.items()) if row not in there]
    if new:
        db.execute(insert(BAD_ROWS), new)


def answer_bytes(rows: Sequence[ScoredRow]) -> int:
    """Return how many bytes of the database rows take."""
    return sum(taken_bytes(len(compact(one.truth)) + len(compact(one.methods)) + len(one.answer or "")) for one in rows)


class Discards:
    """Uploads that are to be removed, by any server that comes by: neither a kill nor a store that is away forgets one.

    An upload is listed before it goes to its store, and its job's transaction takes it off. The end of a job that keeps
    no rows, and its removal, list it again. A method raises as ``Database.transaction``.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def announce(self, upload: str) -> None:
        """List an upload that goes to its store now; it is due in half an hour."""
        with self.database.transaction() as db:
            db.execute(delete(DISCARDS).where(DISCARDS.c.id == upload))  # by a call whose answer was lost
            db.execute(insert(DISCARDS).values(id=upload, due_at=self.database.now + _STORING_S))

    def hurry(self, upload: str) -> None:
        """Let an upload be due now, if it is listed."""
        with self.database.transaction() as db:
            db.execute(update(DISCARDS).where(DISCARDS.c.id == upload).values(due_at=0.0))

    def due(self) -> list[str]:
        """Return the uploads that are to be removed now."""
        with self.database.transaction() as db:
            return list(db.execute(select(DISCARDS.c.id).where(DISCARDS.c.due_at <= self.database.now)).scalars())

    def done(self, uploads: Sequence[str]) -> None:
        """Take uploads off the list: they are gone."""
        with self.database.transaction() as db:
            db.execute(delete(DISCARDS).where(DISCARDS.c.id.in_(uploads)))


def list_due(db: Connection, uploads: Sequence[str]) -> None:
    """List uploads that are to be removed now, as part of a transaction; those that are listed stay so."""
    there = set(db.execute(select(DISCARDS.c.id).where(DISCARDS.c.id.in_(uploads))).scalars())
    new = [{"id": upload, "due_at": 0.0} for upload in uploads if upload not in there]
    if new:
        db.execute(insert(DISCARDS), new)
