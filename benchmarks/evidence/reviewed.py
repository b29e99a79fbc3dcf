"""Review scores beside the entropy of the same answers: whose mistakes come first.

The prediction-rejection ratio (PRR) is 1 for a score that puts every mistake first and 0 for a random one: the area
between a score's risk-coverage curve and the error rate, as a share of that of the perfect score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.evidence.decision import Difference, pooled
from benchmarks.evidence.methods import METHODS
from benchmarks.evidence.results import Key, Results, key
from benchmarks.evidence.scores import METRICS, Record

_AURC = METRICS.index("aurc")


@dataclass(frozen=True)
class Reviewed:
    """One review score on one task at one budget.

    Attributes:
        difference: of its AURC from that of the entropy of the same answers; below 0 is better.
        prr: mean over units and draws; entropy: the same of the entropy.
    """

    task: str
    budget: int
    method: str
    seeds: int
    difference: Difference
    prr: float
    entropy: float


def reviewed(results: Results) -> list[Reviewed]:
    """Return every review score that the results hold."""
    by: dict[tuple[str, int, str], dict[Key, dict[int, Record]]] = {}
    for record in results.records:
        units = by.setdefault((record["task"], record["budget"], record["method"]), {})
        units.setdefault(key(record), {})[record["draw"]] = record
    return [
        _reviewed(place, units, by[task, budget, base], results)
        for place, units in by.items()
        for task, budget, method in [place]
        if method in METHODS and (base := METHODS[method].reviews)
    ]


def _reviewed(
    place: tuple[str, int, str],
    units: Mapping[Key, Mapping[int, Record]],
    base: Mapping[Key, Mapping[int, Record]],
    results: Results,
) -> Reviewed:
    task, budget, method = place
    name = METHODS[method].reviews
    assert name is not None
    gains = [torch.tensor([r["aurc"] - base[u][d]["aurc"] for d, r in draws.items()]) for u, draws in units.items()]
    rows = [(results.resampled[u][method] - results.resampled[u][name])[_AURC] for u in units]
    difference = pooled([u[2] for u in units], gains, rows)
    own = [r for draws in units.values() for r in draws.values()]
    same = [base[u][d] for u, draws in units.items() for d in draws]
    return Reviewed(task, budget, method, len({u[2] for u in units}), difference, prr(own), prr(same))


def prr(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean prediction-rejection ratio of records with an accuracy and an AURC, NaN where none has mistakes.

    The perfect score's AURC is that of rows without end: ``e + (1 - e) ln(1 - e)`` of the error rate e.
    """
    found = []
    for record in records:
        error = 1 - record["accuracy"]
        if 0 < error < 1:
            perfect = error + (1 - error) * math.log(1 - error)
            found.append((error - record["aurc"]) / (error - perfect))
    return sum(found) / len(found) if found else math.nan
