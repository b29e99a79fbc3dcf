"""What training on the calibration labels gains, and how much of it conditioning on them recovers without training.

All figures are of the first calibration draw, whose labels trained the adapter that is compared with. That adapter's
temperature is of further labels (``retrained``), which favours it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.evidence.methods import REFERENCE, RETRAINED
from benchmarks.evidence.plan import TRAINED_DRAW
from benchmarks.evidence.results import Key, key
from benchmarks.evidence.scores import Record

#: Ours, that learn from the labels without training.
CONDITIONED = ("conditioned", "laplace_conditioned")


@dataclass(frozen=True)
class Recovered:
    """One task at one budget, means over the trained models that were trained anew on all labels.

    Attributes:
        nll, accuracy: by method, temperature scaling and retraining among them; NLL in nats.
        seeds: how many trainings.
    """

    task: str
    budget: int
    seeds: int
    nll: dict[str, float]
    accuracy: dict[str, float]

    def gain(self, method: str) -> float:
        """Return by how much a method's NLL is below temperature scaling's, nats."""
        return self.nll[REFERENCE] - self.nll[method]


def recovered(records: Iterable[Record]) -> list[Recovered]:
    """Return every task and budget that has an adapter trained on all labels."""
    units: dict[Key, dict[str, Record]] = {}
    for record in records:
        if record["draw"] == TRAINED_DRAW:
            units.setdefault(key(record), {})[record["method"]] = record
    places: dict[tuple[str, int], list[dict[str, Record]]] = {}
    for (task, budget, _, _), methods in units.items():
        if RETRAINED in methods:
            places.setdefault((task, budget), []).append(methods)
    return [_mean(*place, of) for place, of in places.items()]


def _mean(task: str, budget: int, units: Sequence[dict[str, Record]]) -> Recovered:
    names = [name for name in (REFERENCE, RETRAINED, *CONDITIONED) if all(name in unit for unit in units)]

    def mean(field: str) -> dict[str, float]:
        return {name: sum(unit[name][field] for unit in units) / len(units) for name in names}

    return Recovered(task, budget, len({unit[REFERENCE]["seed"] for unit in units}), mean("nll"), mean("accuracy"))
