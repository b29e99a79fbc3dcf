"""Whether something grows: a line through a series, with the interval that its noise allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress
from scipy.stats import t as student

#: Fewest points that a trend is read from.
FEWEST = 6


@dataclass(frozen=True)
class Trend:
    """Slope of a least-squares line, units per hour, with its 95 % interval."""

    per_hour: float
    low: float
    high: float

    @property
    def grows(self) -> bool:
        """Whether the series grew, by more than its noise explains."""
        return self.low > 0


def trend(times_s: Sequence[float], values: Sequence[float]) -> Trend | None:
    """Return the trend of a series; None of fewer than ``FEWEST`` points.

    Neighbouring points are alike, so that n points say less than n: the interval is that of the ``n (1 - r) / (1 + r)``
    independent ones, with r the residuals' correlation from one point to the next.
    """
    if len(times_s) < FEWEST:
        return None
    hours = np.asarray(times_s) / 3600
    line = linregress(hours, values)
    residuals = np.asarray(values) - line.intercept - line.slope * hours
    power = float(residuals @ residuals)
    r = float(np.clip(residuals[1:] @ residuals[:-1] / power, 0.0, 0.95)) if power > 0 else 0.0
    independent = max(3.0, len(values) * (1 - r) / (1 + r))
    error = line.stderr * math.sqrt(len(values) / independent)
    wide = float(student.ppf(0.975, max(1.0, independent - 2))) * error
    return Trend(line.slope, line.slope - wide, line.slope + wide)
