"""Means of figures, their intervals and verdicts, and whether a task tells methods apart at all.

Records here are those of one task, base, budget and method, over its seeds and draws. A mean is over the means of
seeds, so that every training counts alike.

The 95 % interval of a mean difference has two parts. The part of trainings and draws is Student's over the seeds'
means. Seeds are dealt from one data set, so it may be too narrow. The part of test rows is the mean of the units'
variances. Units share their test rows, so the variance of their mean is at most that. The half-width is the root of the
sum of both squares.
Percentiles of a bootstrap of three seeds would call every difference of one sign a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal, get_args

from scipy import stats

from benchmarks.evidence.plan import TEST_ROWS
from benchmarks.evidence.scores import REFERENCE, TARGETS, Record

Verdict = Literal["better", "tied", "worse"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
#: A task has skill by MAP, or by the most accurate of the rivals of the plan's points 5 to 7.
MAP = "map"
SKILLED = (
    *("logistic_last", "logistic_mean", "nearest_last", "nearest_mean", "logistic_adapted", "nearest_adapted"),
    *("setfit", "logistic_encoder", "nearest_encoder", "words", "encoder_tuned"),
)


Value = Callable[[Record], float | None]


@dataclass(frozen=True)
class Interval:
    """A mean difference and its 95 % interval; ``seeds``: trainings that it is of."""

    mean: float
    half: float
    seeds: int

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of a difference of the NLL, where lower is better; None of one seed, which tells no noise."""
        if self.seeds < 2:
            return None
        if abs(self.mean) <= self.half:
            return "tied"
        return "better" if self.mean < 0 else "worse"


def by_seed(records: Sequence[Record], value: Value) -> list[float]:
    """Return the mean of a value over each seed's draws; draws without the value are left out."""
    seeds: dict[int, list[float]] = {}
    for record in records:
        if (of := value(record)) is not None:
            seeds.setdefault(record["seed"], []).append(of)
    return [fmean(seeds[seed]) for seed in sorted(seeds)]


def mean(records: Sequence[Record], value: Value) -> float | None:
    """Return the mean of a value over seeds and draws; None where no draw has it."""
    seeds = by_seed(records, value)
    return fmean(seeds) if seeds else None


def interval(records: Sequence[Record], key: str = f"vs_{REFERENCE}") -> Interval | None:
    """Return the mean of a paired difference of a cell with its interval; None where no record has it."""
    paired = [record for record in records if record.get(key) is not None]
    if not paired:
        return None
    seeds = by_seed(paired, lambda record: record[key][0])
    of_rows = fmean(by_seed(paired, lambda record: record[key][1] ** 2))
    of_seeds = variance(seeds) / len(seeds) if len(seeds) > 1 else 0.0
    half = math.hypot(_factor(TEST_ROWS) * math.sqrt(of_rows), _factor(len(seeds)) * math.sqrt(of_seeds))
    return Interval(fmean(seeds), half, len(seeds))


def _factor(count: int) -> float:
    """Return Student's factor of a 95 % interval whose variance is from so many values; 0 of one value."""
    return float(stats.t.ppf(0.975, count - 1)) if count > 1 else 0.0


def has_skill(methods: Mapping[str, Sequence[Record]]) -> bool:
    """Return whether MAP or the most accurate rival is more accurate than the most frequent class, beyond noise.

    ``methods``: records of a task, a base and a budget by method. The class is that of the test rows.
    """
    rivals = {
        name: mean(methods[name], lambda record: record["accuracy"]) or 0.0 for name in SKILLED if name in methods
    }
    judged = [MAP] * (MAP in methods) + sorted(rivals, key=lambda name: -rivals[name])[:1]
    leads = [interval(methods[name], "vs_frequent") for name in judged]
    return any(lead is not None and lead.seeds > 1 and lead.mean > lead.half for lead in leads)


def worse(record: Record) -> float | None:
    """Return 1 for a draw with a worse NLL than the reference's, else 0, whose mean is the chance of that."""
    paired = record.get(f"vs_{REFERENCE}")
    return None if paired is None else float(paired[0] > 0)


def above(limit: float, target: float) -> Callable[[Record], float]:
    """Return what is 1 for a draw with more errors among the accepted than a limit, else 0, at one of ``TARGETS``."""
    return lambda record: float((record[f"accepted_error{TARGETS[target]}"] or 0.0) > limit)
