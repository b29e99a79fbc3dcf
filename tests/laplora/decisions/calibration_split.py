"""A synthetic calibration split, and its thresholds."""

from __future__ import annotations

from typing import Any

import torch

from laplora.decisions.review import fit_thresholds
from laplora.decisions.thresholds import PredictiveThresholds
from laplora.decisions.uncertainty import decompose
from laplora.linearised import PosteriorPredictive, contrasts, entropy
from laplora.predictive.gaussian import posterior_predictive

F64 = torch.float64


def split(rows: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return a calibration split of an overconfident three-class model with a posterior, as ``fitted`` takes it."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(rows, 2, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(2 * mean @ contrasts(3).T, 1), 1, generator=g)[:, 0]
    variance = 4 * torch.rand(rows, generator=g, dtype=F64)
    covariance = variance[:, None, None] * torch.eye(2, dtype=F64)
    predictive = posterior_predictive(3 * mean, covariance, torch.ones(rows, 3, dtype=torch.bool), samples=64)
    return {
        "map_probs": torch.softmax(3 * mean @ contrasts(3).T, 1),
        "probs": predictive.probs,
        "epistemic": decompose(predictive).epistemic,
        "labels": labels,
        "label_mass": 0.5 + 0.5 * torch.rand(rows, generator=g, dtype=F64),
    }


def fitted(data: dict[str, Any], **options: Any) -> dict[str, PredictiveThresholds]:
    """Return the thresholds of ``map`` and ``laplace``."""
    map_probs, probs = data["map_probs"], data["probs"]
    predictives = {
        "map": PosteriorPredictive(map_probs, torch.zeros_like(map_probs), entropy(map_probs)),
        "laplace": PosteriorPredictive(probs, torch.ones_like(probs), entropy(probs) - data["epistemic"]),
    }
    return fit_thresholds(predictives, data["labels"], data["label_mass"], **options)
