"""Rows that come beside a run's splits: none is the same question as a row of theirs, or as an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laplora.data.labelled import Task
from laplora.prompts.examples import Example
from training.data.examples import Pool, Source, Splits
from training.data.splitting import drop_duplicates


@dataclass(frozen=True)
class FurtherRows:
    """What is left of rows.

    Attributes:
        examples: in their order; repeated: how many were left out as an earlier one's question.
        in_splits: how many were left out as a question of the training, calibration or test rows.
    """

    examples: tuple[Example, ...]
    repeated: int
    in_splits: int


def further_rows(examples: Sequence[Example], task: Task, splits: Splits) -> FurtherRows:
    """Return rows without those that repeat one of the splits or an earlier one (``drop_duplicates``)."""
    pools = (
        Pool("splits", (*splits.test, *splits.calibration, *splits.train), ("test",)),
        Pool("further", tuple(examples), ("train",)),
    )
    kept, dropped = drop_duplicates(Source(task, pools, "file", "beside the splits"))
    count = dropped["further"]
    return FurtherRows(kept[1].examples, count["within"], count["across"])
