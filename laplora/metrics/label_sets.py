"""The quality of conformal label sets on rows that they were not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from laplora.metrics.scores import bootstrap_interval


@dataclass(frozen=True)
class SetQuality:
    """Share of rows whose set holds the label, labels in a set, and the intervals of both (bootstrap, 95 %).

    If several labels may be right, ``coverage`` is the share of right labels that are in their input's set.
    """

    coverage: float
    mean_size: float
    intervals: dict[str, tuple[float, float]]


def set_quality(sets: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor | None = None) -> SetQuality:
    """Return coverage and mean size of label sets (rows, classes) bool, with bootstrap intervals of whole groups."""
    values = {"coverage": sets.gather(1, labels[:, None])[:, 0].double(), "mean_size": sets.sum(1).double()}

    def interval(of_rows: torch.Tensor) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(0)
        return bootstrap_interval(lambda i: of_rows[i].mean(1), len(of_rows), generator=generator, groups=groups)

    intervals = {name: interval(of_rows) for name, of_rows in values.items()}
    return SetQuality(float(values["coverage"].mean()), float(values["mean_size"].mean()), intervals)


def present_set_quality(sets: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor | None = None) -> SetQuality:
    """Return coverage and mean size of sets of labels of which several may be right, with bootstrap intervals by input.

    Args:
        sets, labels: (inputs, classes) bool, the labels in a set, and those that are right. If none is, nothing is
            left out and nothing is known: a coverage of 1, between 0 and 1.
        groups: (inputs,) int64, inputs of one number are drawn together; None: each by itself.
    """
    held, right, sizes = (sets & labels).sum(1).double(), labels.sum(1).double(), sets.sum(1).double()

    def coverage(index: torch.Tensor) -> torch.Tensor:
        return held[index].sum(-1) / right[index].sum(-1)  # nan for a resample without a right label

    def size(index: torch.Tensor) -> torch.Tensor:
        return sizes[index].mean(-1)

    def interval(statistic: Callable[[torch.Tensor], torch.Tensor]) -> tuple[float, float]:
        return bootstrap_interval(statistic, len(sets), generator=torch.Generator().manual_seed(0), groups=groups)

    everything, intervals = torch.arange(len(sets)), {"coverage": (0.0, 1.0), "mean_size": interval(size)}
    if not bool(labels.any()):
        return SetQuality(1.0, float(size(everything)), intervals)
    return SetQuality(
        float(coverage(everything)), float(size(everything)), intervals | {"coverage": interval(coverage)}
    )
