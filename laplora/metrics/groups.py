"""Rows in groups: drawn and counted whole, since rows of one group err together."""

from __future__ import annotations

import math

import torch


def resampled(groups: torch.Tensor, draws: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return row numbers of draws of as many groups, with replacement: (draws, rows), or where sizes differ one each.

    Args:
        groups: (rows,) int64, which group each row is of; any numbers.
    """
    _, inverse, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    order, starts = inverse.argsort(stable=True), counts.cumsum(0) - counts  # the rows group by group
    drawn = torch.randint(len(counts), (draws, len(counts)), generator=generator)
    if bool((counts == counts[0]).all()):
        return [order[starts[drawn][..., None] + torch.arange(int(counts[0]))].flatten(1)]
    statistics = []
    for one in drawn:
        sizes = counts[one]
        within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        statistics.append(order[starts[one].repeat_interleave(sizes) + within][None])
    return statistics


def mean_and_error(values: torch.Tensor, groups: torch.Tensor | None = None) -> tuple[float, float]:
    """Return the mean of (rows,) values and its standard error, of independent groups; NaN where there is one.

    It is the error of the mean of clusters of unequal sizes (Cochran 1977, chapter 9A), without groups the usual one.
    """
    left = values.double() - values.double().mean()
    if groups is not None:
        _, inverse = torch.unique(groups, return_inverse=True)
        left = torch.zeros(int(inverse.max()) + 1, dtype=torch.float64).index_add(0, inverse, left)
    spread = float(left.std()) if len(left) > 1 else math.nan
    return float(values.double().mean()), spread * math.sqrt(len(left)) / len(values)
