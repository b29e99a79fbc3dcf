"""The temperature of a Gaussian over the contrasts: it divides every sampled logit, inside the average."""

from __future__ import annotations

import math

import torch

from laplora.decisions.temperature import TEMPERATURE_BOUNDS, temperature_penalty
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.label_draws import MANY_CLASSES, label_probs
from laplora.predictive.minimum import grid_minimum
from laplora.predictive.two_classes import two_class_probs

_POINTS = 39


def gaussian_temperature(
    mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor
) -> float:
    """Return the temperature of the least mean NLL, with the term that ``fit_temperature`` has.

    Rahaman and Thiery, arXiv 2007.08792.

    Args:
        mean: (rows, classes - 1), nats; covariance: (rows, classes - 1, classes - 1), nats squared.
        labels: (rows,) int64; class_mask: (rows, classes) bool.
    """
    mean, covariance = mean.double(), covariance.double()

    def of_labels(t: float) -> torch.Tensor:
        scaled, spread = mean / t, covariance / t**2
        if class_mask.shape[1] == 2:
            return two_class_probs(scaled, spread, labels)
        if class_mask.shape[1] > MANY_CLASSES:
            return label_probs(scaled, spread, labels, class_mask)
        return posterior_predictive(scaled, spread, class_mask).probs.gather(1, labels[:, None])[:, 0]

    def loss(log_temperature: float) -> float:
        probs = of_labels(math.exp(log_temperature)).clamp_min(torch.finfo(torch.float64).tiny)
        return -float(probs.log().mean()) + temperature_penalty(log_temperature, len(labels))

    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    return math.exp(grid_minimum(loss, low, high, points=_POINTS, tolerance=1e-6))
