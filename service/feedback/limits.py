"""What chance alone leads to: the limits of every figure of feedback."""

from __future__ import annotations

import math

import torch

from service.http.schemas.feedback import WatchedFigure

#: One-sided probability of passing a limit by chance, and the normal's quantile of it.
CHANCE = 0.001
NORMAL = 3.0902


def watched(value: float | None, limit: float | None, reference: float | None) -> WatchedFigure:
    """Return a figure beside its limit and what it is compared with."""
    return WatchedFigure(value=value, limit=limit, reference=reference)


def standard_error(values: torch.Tensor) -> float | None:
    """Return the standard error of the mean of (rows,); None of one."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
