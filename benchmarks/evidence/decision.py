"""Whether a method beats temperature scaling beyond noise, task by task.

A cell is a task, a budget and a method; its value the mean difference over seeds, draws and both styles. Its variance
has two parts. That of the test rows is the kept bootstrap's, which draws the same rows for every seed, style and
method. That of trainings and calibration draws is between the seeds' means. Three seeds are too few for percentiles of
a bootstrap: they would call every difference of one sign a win, one of equal methods in eight. So each part has its own
Student's factor, and the interval's half width is the root of their squares' sum.

The level is 95 %. Where trainings were added after a look at the planned ones it is 97.5 %, and the verdict of all of
them takes the place of the first. The first look had a level of 95 %: of two equal methods, one of the two verdicts is
a win or a loss in up to 7.5 % of cases (6.5 % where trainings alone vary).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy import stats

from benchmarks.evidence.plan import SEEDS

#: Bootstrap resamples of the rows that are kept of each unit and method.
RESAMPLES = 128
Verdict = Literal["win", "tie", "loss", "open"]


@dataclass(frozen=True)
class Difference:
    """A mean difference from temperature scaling, its interval, and what it says: lower is better.

    Attributes:
        seeds: trainings. Of one alone the interval says nothing of others: it is too narrow for a verdict.
    """

    mean: float
    low: float
    high: float
    seeds: int = 2

    @property
    def verdict(self) -> Verdict:
        """``win`` or ``loss`` where the interval excludes 0; ``open`` with one training."""
        if self.seeds < 2:
            return "open"
        if self.high < 0:
            return "win"
        return "loss" if self.low > 0 else "tie"


def pooled(seeds: Sequence[int], draws: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]) -> Difference:
    """Return the mean over units with its interval over rows, trainings and calibration draws.

    Its level is 95 %, or 97.5 % with more trainings than were planned. With one seed nothing is known of other
    trainings: the second part is between its draws, and too small.

    Args:
        seeds: of each unit; draws: each unit's differences by draw, (draws,); rows: its resampled means, (resamples,).
    """
    by_seed = torch.stack(  # (seeds, draws): styles of a seed share rows, labels and training
        [
            torch.stack([d.double() for s, d in zip(seeds, draws, strict=True) if s == name]).mean(0)
            for name in sorted(set(seeds))
        ]
    )
    apart = by_seed.mean(1) if len(by_seed) > 1 else by_seed[0]
    of_rows = float(torch.stack([r.double() for r in rows]).mean(0).var())
    of_runs = float(apart.var()) / len(apart) if len(apart) > 1 else 0.0
    mean = float(by_seed.mean())
    level = 0.95 if len(by_seed) <= len(SEEDS) else 0.975
    reach = math.sqrt(of_rows * _factor(RESAMPLES, level) ** 2 + of_runs * _factor(len(apart), level) ** 2)
    return Difference(mean, mean - reach, mean + reach, len(by_seed))


def _factor(count: int, level: float) -> float:
    """Return Student's factor of an interval whose variance is from so many values."""
    return float(stats.t.ppf((1 + level) / 2, count - 1)) if count > 1 else 0.0
