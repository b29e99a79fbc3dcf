"""Uploads that are to be removed, listed in the database: neither a kill nor a store that is away forgets one.

An upload is listed before it goes to its store, and its job's transaction takes it off the list. The end of a job that
keeps no rows, and its removal, list it again. Whichever server comes by removes what is due.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select, update

from service.jobs.store.database import Database
from service.jobs.store.schema import DISCARDS

#: Nobody takes longer to store an upload and add its job.
_STORING_S = 1800.0


class Discards:
    """The list. A method raises as ``Database.transaction``."""

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
