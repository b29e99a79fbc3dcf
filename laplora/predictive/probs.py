"""How an adapter and its posterior become one row's probabilities.

A predictive is a Gaussian over the contrasts, divided by a temperature T; without a covariance it is a point:

    probs = E[softmax(Q z / T)],   z ~ N(mean, covariance)

Points can be mixed: the two orders of a question's choices.
"""

from __future__ import annotations

import math

import torch

from laplora.decisions.temperature import TEMPERATURE_BOUNDS, fit_temperature, temperature_penalty
from laplora.errors import ConfigError, DataError
from laplora.linearised import PosteriorPredictive, class_counts, class_probs, contrast_logits, cross_entropy, entropy
from laplora.metrics.checks import check_finite, checked_targets
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.minimum import grid_minimum

#: Points of the search for a temperature, over ``TEMPERATURE_BOUNDS``, before it is refined.
TEMPERATURE_GRID = 39


def predictive_probs(
    mean: torch.Tensor, covariance: torch.Tensor | None, class_mask: torch.Tensor, temperature: float = 1.0
) -> PosteriorPredictive:
    """Return the mean, spread and expected entropy, float64 on the CPU.

    Without covariance it is ``class_probs``, with it ``posterior_predictive``, to the last bit.

    Args:
        mean: (batch, classes - 1) ``Q^T f``, nats.
        covariance: (batch, classes - 1, classes - 1), nats^2; None of a point.
        class_mask: (batch, classes) bool, true for the possible classes: the first c >= 2 of each row.
        temperature: divides every logit.

    Raises:
        ConfigError: a temperature that is not a positive number.
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity at a possible class.
        FactorizationError: a covariance that is not positive semi-definite beyond rounding.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"a temperature is a positive number, got {temperature}")
    (mean,), mask = _checked_means(mean[None], class_mask)
    if covariance is None:
        probs = class_probs(contrast_logits(mean / temperature), mask)
        return PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))
    return posterior_predictive(mean / temperature, covariance / temperature**2, mask)


def fit_predictive_temperature(means: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor) -> float:
    """Return the temperature T that minimises the mean NLL of the mixture of ``softmax(z / T)`` and its prior's term.

    It divides the logits of each order of the options, inside the average (Rahaman and Thiery, arXiv 2007.08792). With
    one order, it is temperature scaling, by ``fit_temperature``. With more, the NLL need not be convex: a grid over
    ``TEMPERATURE_BOUNDS`` even in log T, then Brent's method around its best point to 1e-6.

    Args:
        means: (orders, rows, classes - 1) ``Q^T f``, nats, each order with as much weight.
        labels: (rows,) int64, or soft, as of ``fit_temperature``; class_mask: (rows, classes) bool.

    Raises:
        DataError: no rows, shapes that do not fit, or a label that is not a possible class.
        NonFiniteError: NaN or infinity at a possible class.
    """
    means, mask = _checked_means(means, class_mask)
    if len(means) == 1:
        return fit_temperature(contrast_logits(means[0]), labels, mask)
    labels = checked_targets(labels, mask)
    logits, masks = contrast_logits(means.flatten(0, 1)), mask.repeat(len(means), 1)

    def penalised_nll(log_temperature: float) -> float:
        probs = class_probs(logits / math.exp(log_temperature), masks).view(len(means), *mask.shape).mean(0)
        nll = float(cross_entropy(probs.clamp_min(torch.finfo(torch.float64).tiny).log(), labels).mean())
        return nll + temperature_penalty(log_temperature, len(labels))

    low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
    return math.exp(grid_minimum(penalised_nll, low, high, points=TEMPERATURE_GRID, tolerance=1e-6))


def _checked_means(means: torch.Tensor, class_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 means, exactly 0 at the contrasts of impossible classes, and the mask, both on the CPU."""
    means, mask = means.detach().to("cpu", torch.float64), class_mask.detach().cpu()
    class_counts(mask)
    batch, classes = mask.shape
    if means.ndim != 3 or not len(means) or means.shape[1:] != (batch, classes - 1):
        raise DataError(
            f"means must be (orders, {batch}, {classes - 1}) with at least one order, got {tuple(means.shape)}"
        )
    means = means.masked_fill(~mask[:, 1:], 0)  # the contrasts of a prefix of the classes are a prefix too
    check_finite(means, "the logits")
    return means, mask
