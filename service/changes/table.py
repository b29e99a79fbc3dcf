"""The records of changes in the database of jobs, so that every server that shares it can report their status.

Used from the database's one thread. A function raises as ``Database.transaction``, and then changes nothing.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import ServerGoneError, error_detail
from service.jobs.store.database import Database
from service.jobs.store.schema import CHANGES, SERVERS

Kind = Literal["load", "activate", "condition", "undo_condition"]


class Change(BaseModel):
    """A change of one artifact. Other fields of a newer server are ignored.

    Attributes:
        server: that makes it; owner: the caller that asked for it.
        key: the caller's own name of it; asked: a hash of what was asked for, the same for the same request.
        error: code and message of why it failed; result: what it came to. None before its end.
    """

    id: str
    kind: Kind
    artifact: str
    server: str
    owner: str
    key: str | None
    asked: str
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None

    @property
    def status(self) -> str:
        """queued, running, succeeded or failed."""
        if self.error is not None:
            return "failed"
        if self.result is not None:
            return "succeeded"
        return "queued" if self.started_at is None else "running"


def add(database: Database, change: Change, keep_s: float, most: int) -> Change:
    """Keep a new change and forget old ones; return it, or the one that its owner gave the same key before.

    Args:
        keep_s: for how long one is kept after its end; most: how many are kept.
    """
    newest = select(CHANGES.c.id).order_by(CHANGES.c.created_at.desc()).limit(most)
    try:
        with database.transaction() as db:
            db.execute(insert(CHANGES).values(_row(change)))
            over = CHANGES.c.finished_at.is_not(None) | CHANGES.c.server.not_in(select(SERVERS.c.id))
            old = (CHANGES.c.finished_at < time.time() - keep_s) | (CHANGES.c.id.not_in(newest) & over)
            db.execute(delete(CHANGES).where(old))
    except IntegrityError:
        if find(database, change.id):
            return change  # by a call whose answer was lost
        same = (CHANGES.c.owner == change.owner) & (CHANGES.c.key == change.key)
        return next(iter(_read(database, same)), change)
    return change


def put(database: Database, change: Change) -> None:
    """Keep how a change is now; nothing, where its owner gave its key to another one while the database was away."""
    with suppress(IntegrityError), database.transaction() as db:
        if not db.execute(update(CHANGES).where(CHANGES.c.id == change.id).values(_row(change))).rowcount:
            db.execute(insert(CHANGES).values(_row(change)))


def forget(database: Database, change_id: str) -> None:
    """Keep nothing of a change, which was refused."""
    with database.transaction() as db:
        db.execute(delete(CHANGES).where(CHANGES.c.id == change_id))


def find(database: Database, change_id: str) -> list[Change]:
    """Return the change of this id, where there is one."""
    return _read(database, CHANGES.c.id == change_id)


def every(database: Database) -> list[Change]:
    return _read(database, CHANGES.c.id.is_not(None))


def _read(database: Database, which: Any) -> list[Change]:
    """Return changes as they are; one whose server lives no more has failed."""
    lives = exists().where(SERVERS.c.id == CHANGES.c.server).label("lives")
    with database.transaction() as db:
        rows = db.execute(select(CHANGES.c.record, lives).where(which)).all()
    changes = []
    for row in rows:
        change = Change.model_validate_json(row.record)
        if change.finished_at is None and not row.lives:
            gone = ServerGoneError(
                "the server that made the change ended in the middle of it, or was not heard of for job_lease_s: "
                "GET /artifacts says which version is loaded"
            )
            change.error = error_detail(gone)
        changes.append(change)
    return changes


def _row(change: Change) -> dict[str, Any]:
    record = change.model_dump_json()
    return change.model_dump(include={"id", "server", "owner", "key", "created_at", "finished_at"}) | {"record": record}
