"""Small reports whose figures are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from laplora.linearised import entropy
from laplora.metrics.scores import evaluate_probs
from laplora.report.records import Promise, Report, Rows, Slicing

PROMISE = Promise(target_risk=0.05, coverage=0.9, calibration_rows=150, false_alarms=0.02)


def report(
    *,
    wrong: int = 12,
    reviewed: int = 40,
    rows: int = 120,
    accepted_wrong: int | None = None,
    labels: Sequence[str] = ("negative", "positive"),
    texts: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
    slices: Sequence[Slicing] = (),
) -> Report:
    """Return a report of two classes in which the last ``reviewed`` rows, the least sure ones, go to a person.

    Mistakes are the last rows, but for ``accepted_wrong`` of them, which are the first.
    """
    confidence = torch.linspace(0.995, 0.505, rows, dtype=torch.float64)
    answers = torch.arange(rows) % 2
    probs = torch.where(torch.nn.functional.one_hot(answers, 2).bool(), confidence[:, None], 1 - confidence[:, None])
    first = accepted_wrong or 0
    is_wrong = torch.zeros(rows, dtype=torch.bool)
    is_wrong[:first] = True
    is_wrong[rows - wrong + first :] = wrong > first
    sharp = (probs.log() * 3).softmax(1)
    truth, review = torch.where(is_wrong, 1 - answers, answers), torch.arange(rows) >= rows - reviewed
    shown: dict[str, Any] = {"references": references or [f"row {i}" for i in range(rows)], "texts": texts}
    shown |= {"slices": slices, "threshold": 0.3, "epistemic": entropy(probs) / 2, "review": review}
    return _report(Rows(truth, sharp, probs, entropy(probs), **shown), labels)


def with_rows(*, rows: int, labels: Sequence[str]) -> Report:
    """Return a report of random answers with as many classes as labels."""
    g = torch.Generator().manual_seed(0)
    truth = torch.randint(len(labels), (rows,), generator=g)
    logits = 3 * torch.nn.functional.one_hot(truth, len(labels)).double()
    probs = (logits + torch.randn(rows, len(labels), generator=g, dtype=torch.float64)).softmax(1)
    score = entropy(probs)
    return _report(
        Rows(truth, probs, probs, score, score > score.median(), [f"line {i + 1}" for i in range(rows)]), labels
    )


def _report(rows: Rows, labels: Sequence[str]) -> Report:
    def figures(probs: torch.Tensor) -> dict[str, Any]:
        return evaluate_probs(probs, rows.labels, resamples=20).to_json()

    methods = {"map": figures(rows.map_probs), "temperature": figures(rows.probs)}
    methods["laplace"] = methods["temperature"] | {"sets": {"coverage": 0.9, "mean_size": 1.2}}
    said: dict[str, Any] = {"title": "tiny", "measured_on": f"{len(rows)} test rows", "served": "laplace"}
    said |= {"reason": "laplace: the lowest NLL", "labels": labels, "promise": PROMISE}
    return Report(**said, methods=methods, rows=rows, gain=(-0.02, -0.04, -0.01), unfamiliar=0.02)
