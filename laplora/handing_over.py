"""Which rows the fast predictive leaves to the exact one: those that its covariance's error could decide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from laplora.prediction import row_scores
from laplora.predictive import PosteriorPredictive, class_probs
from laplora.predictives import PREDICTIVES, predictive_probs
from laplora.thresholds import Decision, ModeThresholds
from laplora.uncertainty import decide, decompose, raise_flags


def rows_to_hand_over(
    thresholds: ModeThresholds,
    error: float,
    *,
    logits: torch.Tensor,
    contrast_mean: torch.Tensor,
    covariance: torch.Tensor,
    class_mask: torch.Tensor,
    label_mass: torch.Tensor,
    truncated: Sequence[bool],
) -> list[int]:
    """Return the rows whose label or decision changes when the covariance is multiplied or divided by ``exp(error)``.

    Args:
        thresholds: of ``fast``; error: of the logarithm of its covariance, root mean square.
        logits: (batch, classes), nats; contrast_mean: (batch, classes - 1).
        covariance: (batch, classes - 1, classes - 1), predicted.
        class_mask: (batch, classes) bool; label_mass: (batch,); truncated: per row.
    """
    map_probs = class_probs(logits, class_mask)
    found = []
    for factor in (1.0, math.exp(error), math.exp(-error)):
        predictive = predictive_probs(PREDICTIVES["fast"], contrast_mean[None], factor * covariance[None], class_mask)
        decisions = decisions_of(thresholds, predictive, map_probs, label_mass, truncated)
        found.append(list(zip(predictive.probs.argmax(1).tolist(), decisions, strict=True)))
    return [i for i, answers in enumerate(zip(*found, strict=True)) if len(set(answers)) > 1]


def decisions_of(
    thresholds: ModeThresholds,
    predictive: PosteriorPredictive,
    map_probs: torch.Tensor,
    label_mass: torch.Tensor,
    truncated: Sequence[bool],
) -> list[Decision]:
    """Return what a predictive's thresholds decide of each row; without label sets, whose size decides nothing."""
    flags = raise_flags(
        thresholds,
        probs=predictive.probs,
        label_mass=label_mass,
        set_sizes=torch.ones(len(predictive)),
        truncated=truncated,
        epistemic=decompose(predictive).epistemic,
    )
    return decide(thresholds, row_scores(thresholds, predictive, map_probs), flags)
