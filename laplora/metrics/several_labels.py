"""How good the probabilities are where several labels of an input may be right: over all labels, and by label.

The rows are questions, ``laplora.predictive.binary_rows``: one for each input and label, with the classes absent and
present, those of an input next to each other in the order of the labels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from laplora.errors import DataError
from laplora.metrics.scores import Evaluation, RowScores, bins_of, ece_of, evaluate_rows


@dataclass(frozen=True)
class LabelQuality:
    """How good one label's probability of being present is.

    Attributes:
        present: inputs that have the label.
        accuracy: share of inputs of which it is rightly said to be present, above 0.5, or absent.
        precision: share of right ones among those said to be present; None where it is never said.
        recall: share of the inputs with the label of which it is said to be present; None without such an input.
        nll: nats; ece; brier: squared error summed over absent and present, 0 to 2: means over inputs.
    """

    present: int
    accuracy: float
    precision: float | None
    recall: float | None
    nll: float
    ece: float
    brier: float


@dataclass(frozen=True)
class LabelsQuality:
    """By label, in order, and ``exact_match``: the share of inputs of which every label is right."""

    exact_match: float
    labels: tuple[LabelQuality, ...]

    def to_json(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return plain numbers, those of each label by its name."""
        by_name = {name: asdict(label) for name, label in zip(names, self.labels, strict=True)}
        return {"exact_match": self.exact_match, "labels": by_name}


def binary_probs(present: torch.Tensor) -> torch.Tensor:
    """Return (inputs * labels, 2) the probabilities of absent and present, of those of present (inputs, labels)."""
    flat = present.double().flatten()
    return torch.stack([1 - flat, flat], 1)


def evaluate_labels(
    rows: RowScores,
    labels: torch.Tensor,
    *,
    together: int,
    bins: int = 15,
    resamples: int = 1000,
    seed: int = 0,
    groups: torch.Tensor | None = None,
) -> tuple[Evaluation, LabelsQuality]:
    """Return the metrics over all questions, with intervals by input, and those of each label.

    Args:
        rows: of ``row_scores``, (inputs * labels,); labels: (inputs * labels,) int64, 1 where the label is right.
        together: labels of an input; bins, resamples, seed: as of ``evaluate_probs``.
        groups: (inputs,) int64, inputs of one number are drawn together; None: each input by itself.

    Raises:
        DataError: rows that are not whole inputs.
    """
    if together < 1 or len(labels) % together:
        raise DataError(f"{len(labels)} rows are not inputs of {together} labels each")
    groups = torch.arange(len(labels) // together) if groups is None else groups
    drawn = groups.repeat_interleave(together)
    whole = evaluate_rows(rows, bins=bins, resamples=resamples, seed=seed, groups=drawn)
    by_label = RowScores(*(part.view(-1, together).T.contiguous() for part in rows))
    right = labels.view(-1, together).T == 1
    each = tuple(_quality(RowScores(*(part[k] for part in by_label)), right[k], bins) for k in range(together))
    return whole, LabelsQuality(float(by_label.hits.all(0).double().mean()), each)


def _quality(rows: RowScores, right: torch.Tensor, bins: int) -> LabelQuality:
    predicted = (rows.hits == 1) == right
    true_positives = int((predicted & right).sum())
    return LabelQuality(
        present=int(right.sum()),
        accuracy=float((predicted == right).double().mean()),
        precision=true_positives / int(predicted.sum()) if bool(predicted.any()) else None,
        recall=true_positives / int(right.sum()) if bool(right.any()) else None,
        nll=float(rows.nll.mean()),
        ece=ece_of(bins_of(rows, bins)),
        brier=float(rows.brier.mean()),
    )
