"""From answers to the small figures that are committed: one record a draw, and the bootstrap over rows of a unit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.evidence.answers import Answers, read_answers, read_labels
from benchmarks.evidence.methods import REFERENCE
from benchmarks.evidence.plan import Unit
from benchmarks.evidence.tasks import TASKS
from laplora.metrics.noise import calibrated_ece
from laplora.metrics.ranking import grouped_risk, tie_groups
from laplora.metrics.scores import evaluate_probs, row_nll

#: Bootstrap resamples of the rows that are kept of each unit and method.
RESAMPLES = 128
#: The metrics that methods are compared by.
METRICS = ("nll", "aurc")

Record = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """One unit's figures.

    Attributes:
        records: one a method and draw; the fields are those of docs/results/evidence.json. ``ece_calibrated`` is the
            ECE that a calibrated model would measure on the same confidences.
        resampled: by method (metrics, RESAMPLES): the difference from temperature scaling, mean over draws, on
            resampled rows.
    """

    unit: Unit
    records: list[Record]
    resampled: dict[str, torch.Tensor]


def score(unit: Unit) -> Scored:
    """Return the figures of a unit that has answers."""
    labels, found = read_labels(unit), {a.method.name: a for a in read_answers(unit)}
    rows = resampled_rows(unit.training.task, len(labels))
    skill = has_skill(found["map"].probs[0], labels, rows)
    records = [record for answers in found.values() for record in _records(unit, answers, labels, skill)]
    differences = {}
    reference = {
        draws: _resampled(found[REFERENCE], labels, rows, draws) for draws in {len(a.probs) for a in found.values()}
    }
    for name, answers in found.items():
        if name != REFERENCE:  # paired by draw: some methods answer for the first ones alone
            differences[name] = _resampled(answers, labels, rows, len(answers.probs)) - reference[len(answers.probs)]
    return Scored(unit, records, differences)


def resampled_rows(task: str, rows: int) -> torch.Tensor:
    """Return (RESAMPLES, rows) int64 row numbers, of a task the same everywhere."""
    digest = hashlib.sha256(f"rows of {task}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randint(rows, (RESAMPLES, rows), generator=generator)


def has_skill(probs: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> bool:
    """Return whether MAP beats the most frequent test label in accuracy on 97.5 % of the resamples."""
    right = (probs.argmax(1) == labels).double()
    frequent = (labels == labels.mode().values).double()
    gains = (right - frequent)[rows].mean(1)
    return bool(gains.quantile(0.025) > 0)


def _records(unit: Unit, answers: Answers, labels: torch.Tensor, skill: bool) -> Iterator[Record]:
    training, method = unit.training, answers.method
    for draw, (probs, review) in enumerate(zip(answers.probs, answers.score, strict=True)):
        found = evaluate_probs(probs, labels, review, resamples=0)
        yield {
            "task": training.task,
            "base": TASKS[training.task].base,
            "skill": skill,
            "budget": training.budget,
            "method": method.name,
            "seed": training.seed,
            "draw": draw,
            "style": unit.style,
            "nll": round(found.nll, 5),
            "ece": round(found.ece, 5),
            "ece_calibrated": round(calibrated_ece(probs.amax(1)).mean, 5),
            "accuracy": round(found.accuracy, 5),
            "auroc": None if found.auroc_error is None else round(found.auroc_error, 5),
            "aurc": round(found.aurc, 6),
            "forwards": method.forwards(probs.shape[1]),
        }


def _resampled(answers: Answers, labels: torch.Tensor, rows: torch.Tensor, draws: int) -> torch.Tensor:
    """Return (metrics, RESAMPLES): each metric on resampled rows, mean over the first draws."""
    losses = torch.stack([row_nll(probs, labels) for probs in answers.probs[:draws]]).mean(0)
    risks = torch.zeros(len(rows), dtype=torch.float64)
    for probs, review in zip(answers.probs[:draws], answers.score[:draws], strict=True):
        _, group, _ = tie_groups(review)
        errors = probs.argmax(1) != labels
        risks += torch.stack([grouped_risk(group[i], errors[i]).mean() for i in rows]) / draws
    return torch.stack([losses[rows].mean(1), risks])
