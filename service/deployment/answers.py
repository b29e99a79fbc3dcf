"""Answered predictions in the database of jobs, so that a label finds its answer at every server, and after a restart.

Used from the database's one thread; the functions raise as ``Database.transaction``, and may be called again.
"""

from __future__ import annotations

import json
import time
from base64 import b85decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection, Table, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.feedback.labels import BESIDE
from service.feedback.records import StoredPrediction
from service.jobs.store.database import Database
from service.jobs.store.schema import ANSWERS, TOLD
from service.telemetry.logs import log_crash

#: Ids that are looked for by one statement.
_AT_ONCE = 500


def keep(
    database: Database, deployment: str, predictions: Iterable[tuple[str, StoredPrediction]], now: Callable[[], float]
) -> None:
    """Keep predictions; ``now``: the clock of their ``answered``."""
    since = time.time() - now()
    rows = [
        {"id": key, "deployment": deployment, "answered": since + one.answered, "record": _text(one)}
        for key, one in predictions
    ]
    with database.transaction() as db:
        _insert_new(db, ANSWERS, rows)


def find(
    database: Database, deployment: str, ids: Sequence[str], now: Callable[[], float]
) -> dict[str, StoredPrediction]:
    """Return those predictions that are kept, by id."""
    found = dict[str, StoredPrediction]()
    with database.transaction() as db:
        for start in range(0, len(ids), _AT_ONCE):
            wanted = ANSWERS.c.id.in_(ids[start : start + _AT_ONCE]) & (ANSWERS.c.deployment == deployment)
            read = ((row.id, _prediction(row, now)) for row in db.execute(select(ANSWERS).where(wanted)))
            found |= {key: one for key, one in read if one is not None}
    return found


def label(database: Database, deployment: str, right: Mapping[str, int]) -> None:
    """Keep the bits of right labels by id; ids that are not kept are left out."""
    of = TOLD.c.deployment == deployment
    with database.transaction() as db:
        _insert_new(db, TOLD, [{"deployment": deployment, "told": 0}])
        # The update locks the count until the labels are there too: who read a number has read all below it.
        db.execute(update(TOLD).where(of).values(told=TOLD.c.told + len(right)))
        last = db.execute(select(TOLD.c.told).where(of)).scalar_one()
        this = update(ANSWERS).where(ANSWERS.c.id == bindparam("one"), ANSWERS.c.deployment == deployment)
        numbered = enumerate(right.items(), last - len(right) + 1)
        rows = [{"one": key, "right": f"{bits:x}", "told": number} for number, (key, bits) in numbered]
        first = func.coalesce(ANSWERS.c.first_told, bindparam("told"))
        db.execute(this.values(right=bindparam("right"), told=bindparam("told"), first_told=first), rows)


def _insert_new(db: Connection, into: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, and leave those alone whose key is there already: a call whose answer was lost is made again."""
    dialect = postgresql if db.dialect.name == "postgresql" else sqlite
    db.execute(dialect.insert(into).on_conflict_do_nothing(), rows)


def last_told(database: Database, deployment: str) -> int:
    """Return the number of a deployment's last label, 0 without one."""
    with database.transaction() as db:
        return db.execute(select(TOLD.c.told).where(TOLD.c.deployment == deployment)).scalar_one_or_none() or 0


def labelled(
    database: Database, deployment: str, after: int, now: Callable[[], float], *, by_first: bool = False
) -> tuple[int, list[tuple[str, StoredPrediction, int]]]:
    """Return the next predictions that were labelled after a number, in its order, and the last one's number.

    Beside each are its id and the number of its first label.

    Args:
        by_first: by the number of the first label, else by that of the last one.
    """
    number = ANSWERS.c.first_told if by_first else ANSWERS.c.told
    later = (ANSWERS.c.deployment == deployment) & (number > after)
    with database.transaction() as db:
        rows = db.execute(select(ANSWERS).where(later).order_by(number).limit(_AT_ONCE)).all()
    last = max([after, *(row.first_told if by_first else row.told for row in rows)])
    read = ((row, _prediction(row, now)) for row in rows)
    return last, [(row.id, one, row.first_told) for row, one in read if one is not None]


def prune(database: Database, deployment: str, keep_s: float, most: int) -> None:
    """Forget predictions that are older than ``keep_s``, and all but the newest ``most`` with, and without, a label.

    A shadow's answers are counted apart.

    Those of one request are of one time, and go together.
    """
    labelled, beside = ANSWERS.c.right.is_not(None), ANSWERS.c.id.startswith(BESIDE)
    for kind in (one & other for one in (labelled, ~labelled) for other in (beside, ~beside)):
        of = (ANSWERS.c.deployment == deployment) & kind
        newest = (
            select(ANSWERS.c.answered).where(of).order_by(ANSWERS.c.answered.desc()).offset(max(0, most - 1)).limit(1)
        )
        with database.transaction() as db:
            last_within = db.execute(newest).scalar_one_or_none()
            oldest = max(time.time() - keep_s, -1.0 if last_within is None else last_within)
            db.execute(delete(ANSWERS).where(of & (ANSWERS.c.answered < oldest)))


def _text(one: StoredPrediction) -> str:
    return to_json(_fields(one)).decode()


def _fields(one: StoredPrediction) -> list[Any]:
    held = f"{one.prediction_set:x}"
    told = [one.score, one.target_risk, one.accepted, one.flags, one.several, one.label]
    served = () if one.served is None else (_fields(one.served),)
    return [*one.series, one.caller, one.labels, one.numbers.hex(), held, *told, *served]


def _prediction(row: Any, now: Callable[[], float]) -> StoredPrediction | None:
    """Return what a row holds; None of one that this server cannot read."""
    try:
        answered = now() - (time.time() - row.answered)
        return _read(json.loads(row.record), answered, None if row.right is None else int(row.right, 16))
    except (ValueError, TypeError) as error:
        log_crash("an answer in the database cannot be read", error)
        return None


def _read(fields: list[Any], answered: float, right: int | None) -> StoredPrediction:
    digest, predictive, caller, labels, numbers, held, score, target_risk, accepted, flags, several, *rest = fields
    decoded = bytes.fromhex(numbers) if len(numbers) in (16 * len(labels), 32 * len(labels)) else b85decode(numbers)
    if len(decoded) not in (8 * len(labels), 16 * len(labels)):  # base 85 is of earlier versions
        raise ValueError("its numbers are not those of its labels")
    return StoredPrediction(
        series=(digest, predictive),
        caller=caller,
        answered=answered,
        labels=tuple(labels),
        numbers=decoded,
        prediction_set=int(held, 16),
        score=score,
        target_risk=target_risk,
        accepted=accepted,
        flags=tuple(flags),
        several=several,
        right=right,
        label=rest[0] if rest else -1,
        served=_read(rest[1], answered, None) if len(rest) > 1 else None,
    )
