"""The calibration rows' review scores, kept with an artifact: decisions for what only a request states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laplora.decisions.review import ROUNDING, accept_threshold, of_inputs
from laplora.decisions.thresholds import LabelLimit, PredictiveThresholds
from laplora.decisions.wanted import Costs, Wanted, by_label
from laplora.errors import ArtifactCorruptError, ConfigError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.posterior.file import read_tensors


@dataclass(frozen=True)
class ReviewScores:
    """One predictive on the calibration rows, each row under what was fitted without it.

    Attributes:
        score: (rows,) float64, its review score, nats.
        error: (rows,) bool, whether its most probable label was wrong; MAP's where the guarantee is ``upper_bound``. If
            several labels may be right, float64, the share of a row's labels that was.
        answered: (rows,) int64, the most probable label, whose error it is; None where several labels may be right, and
            of older artifacts.
    """

    score: torch.Tensor
    error: torch.Tensor
    answered: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> ReviewScores:
        """Return those of some rows, (rows,) bool or places."""
        answered = None if self.answered is None else self.answered[rows]
        return ReviewScores(self.score[rows], self.error[rows], answered)


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
        return ReviewScores(entropy(map_probs), map_probs.argmax(1) != labels, map_probs.argmax(1))
    answered = predictive.probs.argmax(1)
    return ReviewScores(*of_inputs(entropies, answered != labels, together), answered if together == 1 else None)


def score_tensors(scores: Mapping[Any, ReviewScores]) -> dict[str, torch.Tensor]:
    """Return the scores as named tensors, for safetensors."""
    tensors = {f"{name}.score": s.score.double().cpu() for name, s in scores.items()}
    errors = {name: s.error.to(torch.uint8) if s.error.dtype == torch.bool else s.error for name, s in scores.items()}
    answered = {f"{name}.answered": s.answered.cpu() for name, s in scores.items() if s.answered is not None}
    return tensors | {f"{name}.error": error.cpu() for name, error in errors.items()} | answered


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
        answered = tensors.get(f"{name}.answered")
        if answered is not None and (answered.shape != score.shape or answered.dtype != torch.int64):
            raise ArtifactCorruptError(f"{path.name} does not hold the answered labels of {name!r} on {rows} rows")
        wrong = wrong.double() if wrong.is_floating_point() else wrong != 0
        scores[name] = ReviewScores(score.double(), wrong, answered)
    return scores


def thresholds_at(
    thresholds: PredictiveThresholds, scores: ReviewScores, wanted: Wanted, labels: Sequence[str]
) -> PredictiveThresholds:
    """Return the thresholds for another target risk, one by answered label, or costs; all else stays the artifact's.

    Its counts of rows do too.

    Args:
        labels: all of the artifact.

    Raises:
        ConfigError: a target risk outside (0, 1), labels that are not the artifact's, or several that may be right.
    """
    rule = thresholds.review
    options = {} if rule.confidence is None else {"confidence": rule.confidence}

    def limit(rows: torch.Tensor | slice, risk: float) -> float | None:
        score, error = scores.score[rows], scores.error[rows]
        return accept_threshold(score, error, risk, guarantee=rule.guarantee, **options) if len(score) else None

    if isinstance(wanted, float | int):
        found = {"threshold": limit(slice(None), wanted), "target_risk": wanted, "by_label": None, "costs": None}
        return thresholds.model_copy(update={"review": rule.model_copy(update=found)})
    if scores.error.is_floating_point():
        raise ConfigError("costs and target risks by label are of artifacts of which one label of an input is right")
    if isinstance(wanted, Costs):
        wanted.matrix(labels)
        return thresholds.model_copy(update={"review": rule.model_copy(update={"costs": wanted, "by_label": None})})
    risks: list[float] = by_label(wanted, labels, "target_risk")
    if scores.answered is None:
        raise ConfigError("the artifact was fitted before there were target risks by label: fit it again")
    limits = {
        label: LabelLimit(threshold=limit(scores.answered == place, risk), target_risk=risk)
        for place, (label, risk) in enumerate(zip(labels, risks, strict=True))
    }
    highest = max((of.threshold for of in limits.values() if of.threshold is not None), default=None)
    each: dict[str, Any] = {"threshold": highest, "target_risk": max(risks), "by_label": limits, "costs": None}
    return thresholds.model_copy(update={"review": rule.model_copy(update=each)})
