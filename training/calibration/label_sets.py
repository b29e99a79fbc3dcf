"""What conformal label sets are worth on rows they were not fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.metrics.scores import bootstrap_interval


@dataclass(frozen=True)
class SetQuality:
    """What a predictive's conformal sets are worth on the test rows.

    Attributes:
        coverage: share of rows whose set holds the label.
        mean_size: labels in a set, mean over rows.
        intervals: of both, by name, bootstrap at 95 %.
    """

    coverage: float
    mean_size: float
    intervals: dict[str, tuple[float, float]]


def set_quality(sets: torch.Tensor, labels: torch.Tensor) -> SetQuality:
    """Return coverage and mean size of label sets, with bootstrap intervals.

    Args:
        sets: (rows, classes) bool; labels: (rows,) int64.
    """
    holds, sizes = sets.gather(1, labels[:, None])[:, 0].double(), sets.sum(1).double()

    def interval(values: torch.Tensor) -> tuple[float, float]:
        def mean(index: torch.Tensor) -> float:
            return float(values[index].mean())

        return bootstrap_interval(mean, len(values), generator=torch.Generator().manual_seed(0))

    intervals = {"coverage": interval(holds), "mean_size": interval(sizes)}
    return SetQuality(float(holds.mean()), float(sizes.mean()), intervals)
