"""What conformal label sets are worth on rows they were not fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.metrics.scores import bootstrap_interval


@dataclass(frozen=True)
class SetQuality:
    """Share of rows whose set holds the label, labels in a set, and the intervals of both (bootstrap, 95 %)."""

    coverage: float
    mean_size: float
    intervals: dict[str, tuple[float, float]]


def set_quality(sets: torch.Tensor, labels: torch.Tensor) -> SetQuality:
    """Return coverage and mean size of label sets (rows, classes) bool, with bootstrap intervals."""
    values = {"coverage": sets.gather(1, labels[:, None])[:, 0].double(), "mean_size": sets.sum(1).double()}

    def interval(of_rows: torch.Tensor) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(0)
        return bootstrap_interval(lambda index: float(of_rows[index].mean()), len(of_rows), generator=generator)

    intervals = {name: interval(of_rows) for name, of_rows in values.items()}
    return SetQuality(float(values["coverage"].mean()), float(values["mean_size"].mean()), intervals)
