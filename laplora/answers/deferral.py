"""Which rows ``fast`` defers to ``laplace``: where the error of its covariance could decide, and unfamiliar rows.

The error of each row is ``laplora.predictive.distilled_error``'s: an extrapolation for a row that is unfamiliar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.decisions.thresholds import Decision, ModeThresholds
from laplora.decisions.uncertainty import decide, decompose, raise_flags, review_score
from laplora.linearised import PosteriorPredictive, class_probs
from laplora.predictive.kinds import PREDICTIVES, predictive_probs


@dataclass(frozen=True)
class Deferral:
    """Which rows of a batch ``fast`` defers to ``laplace``, and why.

    Attributes:
        rows: all of them, in order.
        unfamiliar: those that are unlike the training rows, in order.
    """

    rows: list[int]
    unfamiliar: list[int]


def rows_to_defer(
    thresholds: ModeThresholds,
    *,
    log_error: torch.Tensor,
    unfamiliar: torch.Tensor,
    logits: torch.Tensor,
    contrast_mean: torch.Tensor,
    covariance: torch.Tensor,
    class_mask: torch.Tensor,
    label_mass: torch.Tensor,
    truncated: Sequence[bool],
    limits: Sequence[float | None] | None = None,
) -> list[int]:
    """Return the unfamiliar rows and those whose label or decision changes within the error of their covariance.

    Args:
        log_error: (batch,), one standard deviation of the logarithm of the covariance, up and down.
        unfamiliar: (batch,) bool.
        logits: (batch, classes), nats; contrast_mean: (batch, classes - 1).
        covariance: (batch, classes - 1, classes - 1), predicted.
        class_mask: (batch, classes) bool; label_mass: (batch,); truncated: per row.
        limits: as for ``decide``, where rows are decided for different risks.
    """
    map_probs = class_probs(logits, class_mask)
    outcomes = []
    for factor in (torch.ones_like(log_error), log_error.exp(), (-log_error).exp()):
        scaled = factor[:, None, None] * covariance
        predictive = predictive_probs(PREDICTIVES["fast"], contrast_mean[None], scaled[None], class_mask)
        decisions = decisions_of(thresholds, predictive, map_probs, label_mass, truncated, limits)
        outcomes.append(list(zip(predictive.probs.argmax(1).tolist(), decisions, strict=True)))
    unlike = unfamiliar.tolist()
    return [i for i, of_row in enumerate(zip(*outcomes, strict=True)) if unlike[i] or len(set(of_row)) > 1]


def decisions_of(
    thresholds: ModeThresholds,
    predictive: PosteriorPredictive,
    map_probs: torch.Tensor,
    label_mass: torch.Tensor,
    truncated: Sequence[bool],
    limits: Sequence[float | None] | None = None,
) -> list[Decision]:
    """Return what a predictive's thresholds decide of each row, were it familiar; without sets: they decide nothing.

    ``limits`` as for ``decide``.
    """
    flags = raise_flags(
        thresholds,
        probs=predictive.probs,
        label_mass=label_mass,
        set_sizes=torch.ones(len(predictive)),
        truncated=truncated,
        epistemic=decompose(predictive).epistemic,
        unfamiliar=None,
    )
    return decide(thresholds, review_score(thresholds, probs=predictive.probs, map_probs=map_probs), flags, limits)
