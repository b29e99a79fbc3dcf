"""Means and verdicts of the records in results.json, which an earlier commit measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

Record = Mapping[str, Any]


def cells_of(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return the records of all seeds by method and task."""
    by_cell: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_cell.setdefault((record["method"], record["task"]), []).append(record)
    return by_cell


def compared(records: Sequence[Record]) -> tuple[float, Literal["better", "tied", "worse"]]:
    """Return the mean difference of the NLL to the reference's over seeds, and what it is beyond noise."""
    each = [record["difference"] for record in records]
    mean, rows_error = fmean(each), fmean([record["difference_error"] for record in records])
    of_seeds = fmean([(one - mean) ** 2 for one in each]) / max(len(each) - 1, 1)
    if abs(mean) <= 2 * (rows_error**2 + of_seeds) ** 0.5:
        return mean, "tied"
    return mean, "better" if mean < 0 else "worse"


def error_among_accepted(records: Sequence[Record]) -> float | None:
    """Return the error among the accepted, of all seeds' accepted rows together; None where none is."""
    accepted = sum(record["accepted"] for record in records)
    wrong = sum(record["accepted"] * record["error"] for record in records if record["error"] is not None)
    return wrong / accepted if accepted else None
