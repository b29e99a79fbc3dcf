"""Whether a method beats temperature scaling beyond noise, task by task, from the committed figures alone.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy import stats

from benchmarks.evidence.plan import DEVELOPING, SEEDS
from benchmarks.evidence.results import METRICS, REFERENCE, RESAMPLES, Record, Results, key

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


@dataclass(frozen=True)
class Cell:
    """One method on one task at one budget.

    Attributes:
        differences: by metric, in ``METRICS``.
        values: means over seeds, draws and styles, of ``nll``, ``ece``, ``ece_calibrated``, ``accuracy``, ``auroc``,
            ``aurc``.
        by_style: the NLL's mean difference from temperature scaling, by style; more_accurate: the accuracy's.
        skill: whether MAP has skill on more than half of the units; developing: which half.
    """

    task: str
    budget: int
    method: str
    seeds: int
    units: int
    skill: bool
    developing: bool
    forwards: float
    values: dict[str, float]
    by_style: dict[str, float]
    more_accurate: float
    differences: dict[str, Difference]


def cells(results: Results) -> list[Cell]:
    """Return every cell that the results hold, the reference's too."""
    by_cell: dict[tuple[str, int, str], list[Record]] = {}
    for record in results.records:
        by_cell.setdefault((record["task"], record["budget"], record["method"]), []).append(record)
    reference = {(*key(record), record["draw"]): record for record in results.records if record["method"] == REFERENCE}
    return [_cell(place, records, reference, results) for place, records in by_cell.items()]


def _cell(
    place: tuple[str, int, str], records: Sequence[Record], reference: dict[Any, Record], results: Results
) -> Cell:
    task, budget, method = place
    units = sorted({key(r) for r in records})
    differences = {}
    for number, metric in enumerate(METRICS):
        of_units = [
            torch.tensor([r[metric] - reference[*unit, r["draw"]][metric] for r in records if key(r) == unit])
            for unit in units
        ]
        rows = [
            results.resampled[unit][method][number] if method != REFERENCE else torch.zeros(RESAMPLES) for unit in units
        ]
        differences[metric] = pooled([unit[2] for unit in units], of_units, rows)
    values = {
        name: _mean(r[name] for r in records if r[name] is not None)
        for name in ("nll", "ece", "ece_calibrated", "accuracy", "auroc", "aurc")
    }
    gains = [(r["style"], r["nll"] - reference[*key(r), r["draw"]]["nll"]) for r in records]
    with_skill = sum(next(r["skill"] for r in records if key(r) == unit) for unit in units)
    return Cell(
        task=task,
        budget=budget,
        method=method,
        seeds=len({unit[2] for unit in units}),
        units=len(units),
        skill=2 * with_skill > len(units),
        developing=task in DEVELOPING,
        forwards=records[0]["forwards"],
        values=values,
        more_accurate=_mean(r["accuracy"] - reference[*key(r), r["draw"]]["accuracy"] for r in records),
        by_style={style: _mean(gain for of, gain in gains if of == style) for style, _ in gains},
        differences=differences,
    )


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


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
