"""Means over test rows and seeds with their bootstrap interval, and what such an interval means."""

from __future__ import annotations

from typing import Literal

import torch

from laplora.metrics.scores import bootstrap_interval

RESAMPLES = 2000
#: Mean differences below this, in nats, are rounding: two methods that divide the same logits by the same number.
_ROUNDING = 1e-9

Outcome = Literal["win", "tie", "loss"]
Bounds = tuple[float, float, float]


def pooled_mean(per_row: torch.Tensor) -> Bounds:
    """Return the mean of (seeds, rows) values, and the ends of its 95 % cluster bootstrap interval.

    A row's values under all seeds are drawn together: they share the row's difficulty and its label's noise, so that
    seeds are no further rows. The same draws serve every quantity of as many rows.
    """
    rows = per_row.double().mean(0)
    low, high = bootstrap_interval(
        lambda index: rows[index].mean(1),
        len(rows),
        resamples=RESAMPLES,
        generator=torch.Generator().manual_seed(0),
    )
    value, low, high = (0.0 if abs(v) < _ROUNDING else v for v in (float(rows.mean()), low, high))
    return value, low, high


def outcome(low: float, high: float) -> Outcome:
    """Return what an interval of an NLL difference means: a win or a loss excludes 0."""
    return "win" if high < 0 else "loss" if low > 0 else "tie"


def shown(bounds: Bounds) -> str:
    """Return "-0.376 [-0.431, -0.324]"."""
    value, low, high = bounds
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
