"""The form of every data source: examples of one task, in pools and then in splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from laplora.data.labelled import Task
from laplora.prompts.examples import Example

Role = Literal["train", "calibration", "test"]
#: In order of precedence: a duplicate is kept in the earlier one, so that no test row is ever seen in training.
ROLES: tuple[Role, ...] = ("test", "calibration", "train")


@dataclass(frozen=True)
class Pool:
    """Rows, in the source's order, that one or more splits are drawn from without overlap.

    Attributes:
        name: what reports and errors call it.
        default_rows: rows of its only split where the config names no number; None is all.
    """

    name: str
    examples: tuple[Example, ...]
    roles: tuple[Role, ...]
    default_rows: int | None = None


@dataclass(frozen=True)
class Source:
    """A data set as read, before it is split.

    Attributes:
        pools: each role appears in exactly one of them.
        kind: ``hub``, ``wheel`` or ``file``.
        detail: which hub id, wheel or file, in words.
        warnings: lines about rows that were left out.
    """

    task: Task
    pools: tuple[Pool, ...]
    kind: str
    detail: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """Disjoint, deduplicated splits of one task.

    Attributes:
        train: rows to fine-tune on and to sum the curvature over.
        calibration: rows that choose the prior precision, the calibrators and the thresholds.
        test: rows that only the final metrics see.
        selection: rows that choose the step whose adapter is kept; none where the last step's is.
        report: JSON-able; ``dataset``, ``source`` and ``source_detail``, ``seed``, ``available`` (rows read, by pool),
            ``duplicates_dropped`` (by pool: ``within`` it, ``across`` pools, and how many of either had
            ``conflicting_labels``), ``rows`` (by split), ``classes`` (rows by split and label), ``warnings`` (lines).
    """

    task: Task
    train: tuple[Example, ...]
    calibration: tuple[Example, ...]
    test: tuple[Example, ...]
    report: dict[str, Any]
    selection: tuple[Example, ...] = ()
