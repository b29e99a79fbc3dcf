"""Which server has claimed which job, in the database: who lives, who takes what, and what nobody could run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update

from service.jobs.store.database import Database
from service.jobs.store.records import compact
from service.jobs.store.schema import JOBS, SERVERS


class ClaimLostError(Exception):
    """The job is another server's by now, has ended, or is gone: what was to be written for it was not."""


def claimed(job: int, fence: int) -> tuple[Any, ...]:
    """Return the conditions of a write: the job has not ended, and nobody has claimed it since."""
    return JOBS.c.number == job, JOBS.c.fence == fence, JOBS.c.status == "queued"


class Claims:
    """Claims of jobs. A method raises as ``Database.transaction``, and then changes nothing."""

    def __init__(self, database: Database) -> None:
        self.database = database

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
            query = select(self.database.now - JOBS.c.left_at).where(JOBS.c.number == job)
            return float(db.execute(query).scalar() or 0.0)

    def leave_job(self, job: int, paused: Mapping[str, Any], *, fence: int) -> tuple[float, int]:
        """Let another server have a job that this one cannot run; return since when it waits, and its changes.

        Args:
            paused: what it waits for.

        Raises:
            ClaimLostError: nothing was kept.
        """
        values = {
            "server": None,
            "paused": compact(paused),
            "left_at": func.coalesce(JOBS.c.left_at, self.database.now),
            "changes": JOBS.c.changes + 1,
        }
        left = update(JOBS).where(*claimed(job, fence)).values(values).returning(JOBS.c.left_at, JOBS.c.changes)
        with self.database.transaction() as db:
            row = db.execute(left).one_or_none()
        if row is None:
            raise ClaimLostError
        return row.left_at, row.changes
