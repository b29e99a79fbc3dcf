"""Calibrators and thresholds from the calibration split."""

from __future__ import annotations

import torch

from laplora.artifact import CalibrationRecord
from laplora.calibration import conformal_threshold, fit_temperature
from laplora.predictive import PosteriorPredictive, posterior_predictive
from laplora.predictives import PREDICTIVES, predictive_probs
from laplora.review import fit_thresholds
from training.config import RunConfig
from training.projected import ProjectedSplit


def calibrate(config: RunConfig, split: ProjectedSplit, covariance: torch.Tensor) -> CalibrationRecord:
    """Return the temperature, the conformal thresholds and the flags' thresholds.

    Args:
        split: the calibration split.
        covariance: (rows, classes - 1, classes - 1), its contrast covariance under the served prior.
    """
    settings = config.calibration
    point = predictive_probs(PREDICTIVES["map"], split.projected.contrast_mean[None], None, split.class_mask)
    predictive = laplace_predictive(split, covariance)
    thresholds = fit_thresholds(
        {"map": point, "laplace": predictive},
        split.labels,
        split.label_mass,
        split="calibration",
        target_risk=settings.target_risk,
    )
    return CalibrationRecord(
        rows=len(split.labels),
        temperature=fit_temperature(split.logits, split.labels, split.class_mask),
        thresholds=thresholds,
        conformal={
            "laplace": conformal_threshold(predictive.probs, split.labels, settings.coverage),
            "map": conformal_threshold(point.probs, split.labels, settings.coverage),
        },
        coverage=settings.coverage,
    )


def laplace_predictive(split: ProjectedSplit, covariance: torch.Tensor) -> PosteriorPredictive:
    """Return the posterior predictive of a split's rows under one covariance."""
    return posterior_predictive(split.projected.contrast_mean, covariance, split.class_mask)
