"""What chance alone leads to: the limits of every figure of feedback."""

from __future__ import annotations

import math

import torch

from service.http.schemas.feedback import WatchedFigure

#: One-sided probability of passing a limit by chance, and the normal's quantile of it.
CHANCE = 0.001
NORMAL = 3.0902
#: Fewer rows have no standard error: their spread says too little of the rows to come, and of equal rows it is 0.
FEWEST_ROWS = 30
#: Fewer mistakes of MAP give its gain no limit. Its rare confident mistakes are what the served predictive gains by;
#: without them MAP, being surer, looks better.
FEWEST_MISTAKES = 5


def watched(value: float | None, limit: float | None, reference: float | None) -> WatchedFigure:
    """Return a figure beside its limit and what it is compared with."""
    return WatchedFigure(value=value, limit=limit, reference=reference)


def standard_error(values: torch.Tensor) -> float | None:
    """Return the standard error of the mean of (rows,); None of fewer than ``FEWEST_ROWS``."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) >= FEWEST_ROWS else None


def watched_gain(gains: torch.Tensor, map_mistakes: int) -> WatchedFigure:
    """Return the mean gain over MAP beside its limit, of (rows,) MAP's losses less the served ones, nats."""
    noise = standard_error(gains) if map_mistakes >= FEWEST_MISTAKES else None
    return watched(float(gains.mean()), None if noise is None else -NORMAL * noise, 0.0)
