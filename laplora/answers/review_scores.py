"""The calibration rows' review scores, kept with an artifact: decisions for a risk that only a request states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from laplora.answers.prediction import Prediction
from laplora.decisions.review import ROUNDING, accept_threshold, of_inputs
from laplora.decisions.thresholds import FLAGS, Flag, PredictiveThresholds
from laplora.decisions.uncertainty import decide
from laplora.errors import ArtifactCorruptError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.posterior.file import read_tensors


@dataclass(frozen=True)
class ReviewScores:
    """One predictive on the calibration rows, each row under what was fitted without it.

    Attributes:
        score: (rows,) float64, its review score, nats.
        error: (rows,) bool, whether its most probable label was wrong; MAP's where the guarantee is ``upper_bound``. If
            several labels may be right, float64, the share of a row's labels that was.
    """

    score: torch.Tensor
    error: torch.Tensor


def review_scores(
    thresholds: PredictiveThresholds,
    predictive: PosteriorPredictive,
    map_probs: torch.Tensor | None,
    labels: torch.Tensor,
    entropies: torch.Tensor,
    together: int = 1,
) -> ReviewScores:
    """Return what a predictive's thresholds for another target risk are fitted on.

    Under ``upper_bound`` that is MAP: its entropy and its mistakes (``laplora.decisions.uncertainty.agreed_entropy``).

    Args:
        predictive: of the calibration rows; map_probs: (rows, classes), theirs; None where there are none, and no
            upper bound; labels: (rows,) int64.
        entropies, together: what ``fit_thresholds`` had for the predictive.
    """
    if thresholds.review.guarantee == "upper_bound" and map_probs is not None:
        return ReviewScores(entropy(map_probs), map_probs.argmax(1) != labels)
    return ReviewScores(*of_inputs(entropies, predictive.probs.argmax(1) != labels, together))


def score_tensors(scores: Mapping[Any, ReviewScores]) -> dict[str, torch.Tensor]:
    """Return the scores as named tensors, for safetensors."""
    tensors = {f"{name}.score": s.score.double().cpu() for name, s in scores.items()}
    errors = {name: s.error.to(torch.uint8) if s.error.dtype == torch.bool else s.error for name, s in scores.items()}
    return tensors | {f"{name}.error": error.cpu() for name, error in errors.items()}


def read_scores(path: Path, names: Sequence[str], rows: int) -> dict[str, ReviewScores]:
    """Return the scores in a file, by predictive.

    Args:
        names: the predictives that must be there; rows: of the calibration split; a predictive that no label moved has
            fewer where further ones were learned.

    Raises:
        ArtifactCorruptError: an unreadable file, a tensor missing, or one of another shape, with NaN or below 0.
    """
    tensors, _ = read_tensors(path)
    scores: dict[str, ReviewScores] = {}
    for name in names:
        score, wrong = tensors.get(f"{name}.score"), tensors.get(f"{name}.error")
        if (
            score is None
            or wrong is None
            or score.shape != wrong.shape
            or score.dim() != 1
            or not 0 < len(score) <= rows
        ):
            raise ArtifactCorruptError(f"{path.name} does not hold the scores and errors of {name!r} on {rows} rows")
        if not score.is_floating_point() or not bool((score.isfinite() & (score >= -ROUNDING)).all()):
            raise ArtifactCorruptError(f"{path.name}: a score of {name!r} is no entropy")
        if wrong.is_floating_point() and not bool(((wrong >= 0) & (wrong <= 1)).all()):
            raise ArtifactCorruptError(f"{path.name}: an error of {name!r} is no share of labels")
        scores[name] = ReviewScores(score.double(), wrong.double() if wrong.is_floating_point() else wrong != 0)
    return scores


def thresholds_at(thresholds: PredictiveThresholds, scores: ReviewScores, target_risk: float) -> PredictiveThresholds:
    """Return the thresholds for another target risk; all but the limit stays the artifact's, its counts of rows too.

    Raises:
        ConfigError: a target risk outside (0, 1).
    """
    rule = thresholds.review
    options = {} if rule.confidence is None else {"confidence": rule.confidence}
    limit = accept_threshold(scores.score, scores.error, target_risk, guarantee=rule.guarantee, **options)
    review = rule.model_copy(update={"threshold": limit, "target_risk": target_risk})
    return thresholds.model_copy(update={"review": review})


def decided_at(predictions: Sequence[Prediction], thresholds: PredictiveThresholds) -> list[Prediction]:
    """Return predictions of one predictive with the decisions that other thresholds (``thresholds_at``) give.

    With them goes the flag ``low_confidence``.
    """
    limit = thresholds.review.threshold

    def has(flag: Flag, p: Prediction) -> bool:
        return limit is None or p.score > limit if flag == "low_confidence" else flag in p.flags

    flags: list[list[Flag]] = [[flag for flag in FLAGS if has(flag, p)] for p in predictions]
    return [
        replace(p, flags=mine, decision=decision, rule=thresholds.review)
        for p, mine, decision in zip(predictions, flags, decide(flags), strict=True)
    ]
