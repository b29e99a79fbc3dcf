"""Temperature scaling, fitted on the MAP logits of a calibration split."""

from __future__ import annotations

import math

import torch

from laplora.errors import ConfigError
from laplora.linearised import cross_entropy
from laplora.metrics.checks import checked_targets, checked_values

#: Bounds of the temperature.
TEMPERATURE_BOUNDS = (0.05, 100.0)

#: Weight of the temperature's prior, in rows. Without it the likelihood of separable rows (no mistake among them, as
#: often on an accurate model) grows without end as the temperature falls.
PRIOR_ROWS = 1.0


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor) -> float:
    """Return the temperature T that minimises the mean NLL of softmax(logits / T) plus its prior's penalty.

    Temperature scaling (Guo et al., arXiv 1706.04599) with a prior that weighs as much as one row, Gamma(2, 1) on
    1 / T: it adds (1 / T - 1 - log(1 / T)) / rows. Both terms are convex in 1 / T, so the derivative has one root,
    which is looked for in log T.

    Args:
        logits: (rows, classes), nats; any value at impossible classes.
        labels: (rows,) int64, or soft (``laplora.linearised.cross_entropy``).
        class_mask: (rows, classes) bool, true for the row's possible classes.

    Raises:
        DataError: no rows, shapes that do not fit, or a label that is not a possible class.
        NonFiniteError: NaN or infinity in a possible class's logit.
    """
    from scipy import optimize  # half a second, which nobody waits for who only answers

    logits, mask = checked_values(logits, class_mask)
    labels = checked_targets(labels, mask)
    # A common shift per row changes nothing; it makes logits / T safe at small T.
    logits = (logits - logits.masked_fill(~mask, -math.inf).amax(1, keepdim=True)).masked_fill(~mask, 0)
    of_label = -cross_entropy(logits, labels)

    def slope(log_temperature: float) -> float:
        """Return the derivative by 1 / T: the expected logit minus the label's, mean over rows, and the prior's."""
        temperature = math.exp(log_temperature)
        probs = torch.softmax((logits / temperature).masked_fill(~mask, -math.inf), 1)
        return float(((probs * logits).sum(1) - of_label).mean()) + PRIOR_ROWS * (1 - temperature) / len(labels)

    low, high = map(math.log, TEMPERATURE_BOUNDS)
    if slope(low) <= 0:
        return TEMPERATURE_BOUNDS[0]
    if slope(high) >= 0:
        return TEMPERATURE_BOUNDS[1]
    return math.exp(optimize.brentq(slope, low, high, xtol=1e-15))


def temperature_probs(logits: torch.Tensor, temperature: float, class_mask: torch.Tensor) -> torch.Tensor:
    """Return softmax(logits / temperature), (rows, classes) float64, exactly 0 at impossible classes.

    Raises:
        ConfigError: a temperature that is not a positive number.
        DataError: shapes that do not fit.
        NonFiniteError: NaN or infinity in a possible class's logit.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"a temperature is a positive number, got {temperature}")
    logits, mask = checked_values(logits, class_mask)
    return torch.softmax((logits / temperature).masked_fill(~mask, -math.inf), 1)
