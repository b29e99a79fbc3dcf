"""How an adapter and its posterior become one row's probabilities.

A predictive is a Gaussian over the contrasts, divided by a temperature T; without a covariance it is a point:

    probs = E[softmax(Q z / T)],   z ~ N(mean, covariance)
"""

from __future__ import annotations

import math

import torch

from laplora.errors import ConfigError, DataError
from laplora.linearised import PosteriorPredictive, class_counts, class_probs, contrast_logits, entropy
from laplora.metrics.checks import check_finite
from laplora.predictive.gaussian import posterior_predictive


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
    mean, mask = checked_mean(mean, class_mask)
    if covariance is None:
        probs = class_probs(contrast_logits(mean / temperature), mask)
        return PosteriorPredictive(probs, torch.zeros_like(probs), entropy(probs))
    return posterior_predictive(mean / temperature, covariance / temperature**2, mask)


def checked_mean(mean: torch.Tensor, class_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (batch, classes - 1) means, float64, 0 at the contrasts of impossible classes, and the mask, on the CPU.

    Raises:
        DataError: shapes that do not fit. NonFiniteError: NaN or infinity at a possible class.
    """
    mean, mask = mean.detach().to("cpu", torch.float64), class_mask.detach().cpu()
    class_counts(mask)
    batch, classes = mask.shape
    if mean.shape != (batch, classes - 1):
        raise DataError(f"the mean must be ({batch}, {classes - 1}), got {tuple(mean.shape)}")
    mean = mean.masked_fill(~mask[:, 1:], 0)  # the contrasts of a prefix of the classes are a prefix too
    check_finite(mean, "the logits")
    return mean, mask
