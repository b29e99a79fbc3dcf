"""Whether a method beats temperature scaling beyond noise, task by task, from the committed figures alone.

A cell is a task, a budget and a method; its value the mean difference over seeds, draws and both styles. Its interval
is a hierarchical bootstrap over rows, seeds and draws: the rows' part comes from the kept resamples, which are the
same rows for every seed, style and method. Seeds are drawn with replacement, and draws within a seed; their deviations
from the mean are scaled by sqrt(n / (n - 1)), without which a bootstrap of three seeds is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.evidence.methods import REFERENCE
from benchmarks.evidence.plan import DEVELOPING
from benchmarks.evidence.results import Results, key
from benchmarks.evidence.scores import METRICS, Record

_RESAMPLES = 4000
#: Of every interval, 95 %.
_ENDS = (0.025, 0.975)

Verdict = Literal["win", "tie", "loss"]


@dataclass(frozen=True)
class Difference:
    """A mean difference from temperature scaling, its interval, and what it says: lower is better."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """``win`` or ``loss`` where the interval excludes 0."""
        if self.high < 0:
            return "win"
        return "loss" if self.low > 0 else "tie"


@dataclass(frozen=True)
class Cell:
    """One method on one task at one budget.

    Attributes:
        differences: by metric, in ``METRICS``.
        values: means over seeds, draws and styles, of ``nll``, ``ece``, ``accuracy``, ``auroc``, ``aurc``.
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
            results.resampled[unit][method][number] if method != REFERENCE else torch.zeros(1, dtype=torch.float16)
            for unit in units
        ]
        differences[metric] = hierarchical([unit[2] for unit in units], of_units, rows)
    values = {
        name: _mean(r[name] for r in records if r[name] is not None)
        for name in ("nll", "ece", "accuracy", "auroc", "aurc")
    }
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
        differences=differences,
    )


def hierarchical(seeds: Sequence[int], draws: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]) -> Difference:
    """Return the mean over units with the interval of a bootstrap over rows, seeds and draws.

    Args:
        seeds: of each unit; draws: each unit's differences by draw, (draws,); rows: its resampled means, (resamples,).
    """
    generator = torch.Generator().manual_seed(0)
    names = sorted(set(seeds))
    by_seed = torch.stack(  # (seeds, draws): styles of a seed share rows, labels and training
        [torch.stack([d.double() for s, d in zip(seeds, draws, strict=True) if s == name]).mean(0) for name in names]
    )
    of_rows = torch.stack([r.double() for r in rows]).mean(0)
    of_rows = of_rows - of_rows.mean()
    mean = float(by_seed.mean())
    of_seeds = by_seed.mean(1)
    between = _widened(of_seeds - of_seeds.mean())
    within = _widened(by_seed - of_seeds[:, None])
    count, per = by_seed.shape
    chosen = torch.randint(count, (_RESAMPLES, count), generator=generator)
    drawn = torch.randint(per, (_RESAMPLES, count, per), generator=generator)
    values = between[chosen].mean(1) + within[chosen[:, :, None], drawn].mean((1, 2))
    values += of_rows[torch.randint(len(of_rows), (_RESAMPLES,), generator=generator)]
    low, high = (mean + values.quantile(torch.tensor(_ENDS, dtype=torch.float64))).tolist()
    return Difference(mean, low, high)


def _widened(deviations: torch.Tensor) -> torch.Tensor:
    """Return deviations along the last axis, scaled so that a bootstrap of them has an unbiased variance."""
    count = deviations.shape[-1]
    return deviations * math.sqrt(count / (count - 1)) if count > 1 else deviations


@dataclass(frozen=True)
class Tally:
    """Wins, ties and losses of one method over tasks with skill, and the targets that were set for it."""

    method: str
    metric: str
    wins: tuple[str, ...]
    ties: tuple[str, ...]
    losses: tuple[str, ...]


def tally(of: Iterable[Cell], method: str, metric: str) -> Tally:
    """Return the verdicts of a method over some cells."""
    by: dict[str, list[str]] = {"win": [], "tie": [], "loss": []}
    for cell in of:
        if cell.method == method:
            by[cell.differences[metric].verdict].append(cell.task)
    return Tally(method, metric, tuple(by["win"]), tuple(by["tie"]), tuple(by["loss"]))


def reported(every: Iterable[Cell], budget: int) -> Iterator[Cell]:
    """Yield the cells that conclusions are drawn from: the reporting half, tasks with skill, one budget."""
    return (cell for cell in every if cell.budget == budget and cell.skill and not cell.developing)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
