"""The state that the servers of a deployment serve: the artifact that answers unasked, and all that are loaded.

Kept in the database of jobs. A server of the deployment begins with it and follows it, so a change outlives its server.
The functions are used from the database's one thread, and raise as ``Database.transaction``.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from service.jobs.store.database import Database
from service.jobs.store.schema import SERVED
from service.shadow.terms import Terms
from service.telemetry.logs import log_crash


class Served(BaseModel):
    """A deployment's state. Other fields of a newer server are ignored.

    Attributes:
        configured: the settings that name artifacts: a server with others begins anew.
        active: the folder's name of the artifact that answers where a request names none.
        loaded: digests by folder's name, of that one too.
        shadow: what was asked of a candidate beside it; None: there is none.
    """

    configured: str
    active: str
    loaded: dict[str, str]
    shadow: Terms | None = None


def find(database: Database, deployment: str) -> tuple[int, Served | None]:
    """Return what a deployment serves, and its version, which grows with each change; 0 where nothing is known."""
    with database.transaction() as db:
        row = db.execute(select(SERVED).where(SERVED.c.deployment == deployment)).one_or_none()
    return (0, None) if row is None else (row.version, _read(row.record))


def _read(record: str) -> Served | None:
    try:
        return Served.model_validate_json(record)
    except ValueError as error:
        log_crash("what is served, in the database, cannot be read", error)
        return None


def tell(database: Database, deployment: str, before: Served | None, now: Served) -> tuple[int, int]:
    """Keep what a server changed, beside what others did, and return the versions before and after.

    Args:
        before: what it served before its changes; None: it is of no deployment yet, and nothing of others is kept.
    """
    try:
        return _tell(database, deployment, before, now)
    except IntegrityError:  # another server was the first one meanwhile
        return _tell(database, deployment, before, now)


def _tell(database: Database, deployment: str, before: Served | None, now: Served) -> tuple[int, int]:
    where = SERVED.c.deployment == deployment
    with database.transaction() as db:
        row = db.execute(select(SERVED).where(where).with_for_update()).one_or_none()
        if row is None:
            db.execute(insert(SERVED).values(deployment=deployment, version=1, record=now.model_dump_json()))
            return 0, 1
        kept = _read(row.record)
        if (new := now if kept is None else changed(kept, before, now)) == kept:
            return row.version, row.version
        db.execute(update(SERVED).where(where).values(version=row.version + 1, record=new.model_dump_json()))
        return row.version, row.version + 1


def changed(kept: Served, before: Served | None, now: Served) -> Served:
    """Return what is served once a server's changes, from ``before`` to ``now``, come to what is kept."""
    if before is None or kept.configured != now.configured:
        return now
    loaded = {name: digest for name, digest in kept.loaded.items() if name in now.loaded or name not in before.loaded}
    loaded |= {name: digest for name, digest in now.loaded.items() if before.loaded.get(name) != digest}
    active = kept.active if now.active == before.active else now.active
    return Served(
        configured=now.configured,
        active=active,
        loaded={active: kept.loaded.get(active, "")} | loaded,
        shadow=kept.shadow if now.shadow == before.shadow else now.shadow,
    )
