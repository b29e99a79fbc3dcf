"""From predictions and true labels to the metrics of every predictive, for POST /evaluate and its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from laplora.errors import InvalidInputError
from service.errors import InvalidRequestError

if TYPE_CHECKING:
    import torch

    from laplora.answers.prediction import Prediction
    from laplora.artifact.manifest import Manifest

#: An input's probabilities under one method, and the score that ranks its mistakes; None: their entropy.
MethodRow = tuple[Sequence[float], float | None]


class HowMeasured(Protocol):
    """Bins of the ECE, and resamples and seed of the bootstrap."""

    bins: int
    resamples: int
    seed: int


def check_one_label(manifest: Manifest) -> None:
    """Raise InvalidRequestError where several labels of an input may be right: none could be sent but one."""
    if manifest.likelihood == "bernoulli":
        raise InvalidRequestError(
            "of this artifact several labels of an input may be right, and inputs to evaluate have one label: measure "
            "it where it was fitted, by CalibratedPosterior.evaluate",
            field="artifact",
        )


def label_index(label: str, fields: Mapping[str, Any], labels: Sequence[str]) -> int:
    """Return the position of an input's true label among the artifact's ``labels`` that it can take.

    Raises:
        InvalidInputError: the label is not one of them.
    """
    choices = fields.get("choices")
    possible = list(labels[: len(choices)] if isinstance(choices, list) else labels)
    if label not in possible:
        raise InvalidInputError(f"the label must be one of {possible}, the artifact's label words", field="label")
    return possible.index(label)


def method_rows(answering: str, prediction: Prediction, own_order: Prediction | None = None) -> dict[str, MethodRow]:
    """Return one input's numbers by method, ``answering`` the predictive that answers.

    Where ``prediction`` averages several orders of the choices, ``own_order`` is the one in the user's order, and
    ``NAME_order_average`` comes beside each method.
    """
    if own_order is not None:
        averaged = method_rows(answering, prediction)
        return method_rows(answering, own_order) | {f"{name}_order_average": row for name, row in averaged.items()}
    p = prediction
    others = {name: (probs, p.calibrated_scores[name]) for name, probs in p.calibrated_probs.items()}
    return {"map": (p.map_probs, None), answering: (p.probs, p.score), **others}


def measure(
    rows: Sequence[Mapping[str, MethodRow]], labels: Sequence[int], *, class_count: int, how: HowMeasured
) -> dict[str, dict[str, Any]]:
    """Return the metrics of every method, by name, as ``measure_method`` does; all rows have the same methods."""
    return {
        name: measure_method([row[name] for row in rows], labels, class_count=class_count, how=how) for name in rows[0]
    }


def measure_method(
    rows: Sequence[MethodRow], labels: Sequence[int], *, class_count: int, how: HowMeasured
) -> dict[str, Any]:
    """Return one method's metrics as JSON values; it ranks its mistakes by its score.

    Args:
        rows: at least one.
        labels: the true label's position, per row.

    Raises:
        NonFiniteError: a number that is not finite.
    """
    import torch

    from laplora.metrics.scores import evaluate_probs

    scores = [score for _, score in rows if score is not None]
    metrics: dict[str, Any] = evaluate_probs(
        padded_probs([probs for probs, _ in rows], class_count),
        torch.tensor(labels),
        torch.tensor(scores, dtype=torch.float64) if scores else None,
        bins=how.bins,
        resamples=how.resamples,
        seed=how.seed,
    ).to_json()
    del metrics["rows"]
    return metrics


def padded_probs(rows: Sequence[Sequence[float]], class_count: int) -> torch.Tensor:
    """Return (rows, class_count) float64; a row with fewer choices has probability 0 at the classes it cannot take."""
    import torch

    return torch.tensor([[*row, *[0.0] * (class_count - len(row))] for row in rows], dtype=torch.float64)
