"""Figures of a job by the values of one column of its upload: how large each slice is, and how good the answers are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from service.errors import InvalidRequestError, TooManyValuesError
from service.jobs.answered import AnsweredRow, answered_pages
from service.jobs.ledger import Ledger
from service.jobs.records import About, Job, Sums

#: Most different values of a column; each has sums of every method in memory.
MOST_VALUES = 1000
#: Most characters of a value that is text.
_VALUE_CHARS = 200


@dataclass
class Slice:
    """The rows of one value, so far.

    Attributes:
        bad: rows that could not be scored; review, unfamiliar: of those that could.
        sums: of the latter.
    """

    bad: int = 0
    review: int = 0
    unfamiliar: int = 0
    sums: Sums = field(default_factory=Sums)

    @property
    def rows(self) -> int:
        """How many rows have the value."""
        return self.bad + self.sums.rows

    def figures(self, value: Any) -> dict[str, Any]:
        """Return the slice as the contract writes it."""
        scored = self.sums.rows
        return {
            "value": value,
            "rows": self.rows,
            "rows_bad": self.bad,
            "review": self.review / scored if scored else None,
            "unfamiliar": self.unfamiliar / scored if scored else None,
            "methods": self.sums.metrics(),
        }


async def slices(ledger: Ledger, job: Job, column: str, *, most: int) -> dict[str, Any]:
    """Return the figures of the ``most`` largest slices by a column, and those of all others together.

    Raises:
        InvalidRequestError: the upload has no such column.
        TooManyValuesError: it has more than 1,000 different values, or one of more than 200 characters.
    """
    if column not in job.about.columns:
        known = [name[:64] for name in list(job.about.columns)[:20]]
        raise InvalidRequestError(f"the upload has no such column; its columns are {known}", field="query.by")
    found: dict[str, Slice] = {}
    async with aclosing(answered_pages(ledger, job)) as pages:
        async for page in pages:
            await ledger.in_files(_add, found, page, column, job.about)
    # The largest first; of equal ones the first by value, so that it is the same each time.
    ordered = sorted(found.items(), key=lambda item: (-item[1].rows, item[0]))
    others = [part for _, part in ordered[most:]]
    return {
        "column": column,
        "rows": sum(part.rows for part in found.values()),
        "values": len(found),
        "slices": [part.figures(json.loads(value)) for value, part in ordered[:most]],
        "others": _together(others).figures(None) if others else None,
    }


def _add(found: dict[str, Slice], page: Sequence[AnsweredRow], column: str, about: About) -> None:
    by_value: dict[str, list[AnsweredRow]] = {}
    for one in page:
        value = json.dumps(one.columns.get(column), sort_keys=True, ensure_ascii=False)
        if len(value) > _VALUE_CHARS + 2 or (value not in found and len(found) + len(by_value) >= MOST_VALUES):
            raise TooManyValuesError(
                f"a column of figures has at most {MOST_VALUES} different values of {_VALUE_CHARS} characters, this "
                "one has more: choose a coarser one, or download the rows",
                field="query.by",
                limit=MOST_VALUES,
            )
        by_value.setdefault(value, []).append(one)
    for value, rows in by_value.items():
        part = found.setdefault(value, Slice())
        scored = [one.scored for one in rows if one.scored is not None]
        part.bad += len(rows) - len(scored)
        part.review += sum((one.answer or {}).get("decision") == "review" for one in rows)
        part.unfamiliar += sum("unfamiliar" in (one.answer or {}).get("flags", ()) for one in rows)
        if scored:
            part.sums = part.sums.plus(scored, labels=about.label_names, bins=about.options.bins)


def _together(parts: list[Slice]) -> Slice:
    whole = Slice()
    for part in parts:
        whole = Slice(
            whole.bad + part.bad,
            whole.review + part.review,
            whole.unfamiliar + part.unfamiliar,
            whole.sums.joined(part.sums),
        )
    return whole
