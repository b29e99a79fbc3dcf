"""The probability of a label of two, where it is wanted for hundreds of priors or temperatures.

The same integral as ``laplora.predictive.gaussian``'s, to the same error, of the label's probability alone and with as
many nodes as the row's variance needs. It serves the choice of a prior and of a temperature, never an answer.

With steps of h standard deviations the trapezoid rule errs by about ``exp(-2 pi^2 / (h s))`` where the logits'
difference has the standard deviation s (Trefethen and Weideman 2014, section 5). So h may grow as s falls.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from laplora.metrics.checks import check_finite
from laplora.predictive.gaussian import NODES, REACH, symmetric_root

#: Nodes of the coarsest rule; each finer one has half its steps, up to the answers' own.
_COARSEST = 33
#: Largest standard deviation of the logits' difference that the coarsest rule takes, nats: the probability is within
#: 1e-12 of the answers'. Each finer rule takes twice as much, the finest all that is left.
_TAKES = 1.1
#: Elements per temporary.
_BLOCK = 1 << 18


def two_class_probs(contrast_mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (rows,) float64 the mean probability of each row's label under its Gaussian.

    Args:
        contrast_mean: (rows, 1), nats; covariance: (rows, 1, 1), nats squared.
        labels: (rows,) int64, 0 or 1.

    Raises:
        NonFiniteError: NaN or infinity in a mean or covariance.
        FactorizationError: a variance below 0 beyond rounding.
    """
    mean, spread = contrast_mean.detach().double().cpu(), covariance.detach().double().cpu()
    check_finite(mean, "the logits' mean")
    check_finite(spread, "the logits' covariance")
    # The label's logit less the other's, which is the contrast times the square root of 2, or minus it for label 1.
    centre = math.sqrt(2) * mean[:, 0] * (1 - 2 * labels.cpu())
    deviation = math.sqrt(2) * symmetric_root(spread)[:, 0, 0]
    probs = torch.empty_like(centre)
    finest = round(math.log2((NODES - 1) / (_COARSEST - 1)))
    level = (deviation / _TAKES).clamp_min(1).log2().ceil().clamp_max(finest).long()
    for one in sorted(set(level.tolist())):
        nodes, weights = _rule((_COARSEST - 1) * 2**one + 1)
        for rows in (level == one).nonzero()[:, 0].split(_BLOCK // len(nodes)):
            points = centre[rows, None] + deviation[rows, None] * nodes
            probs[rows] = torch.sigmoid(points) @ weights
    return probs


@lru_cache(maxsize=16)
def _rule(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return nodes and weights (count,) of a standard normal; shared, never written to."""
    nodes = torch.linspace(-REACH, REACH, count, dtype=torch.float64)
    return nodes, torch.softmax(-nodes * nodes / 2, 0)
