"""The search for prior precisions of least loss on held-out rows, without a pass, and what each choice returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from laplora.errors import PriorError
from laplora.jacobians.blocks import Block
from laplora.linearised import cross_entropy
from laplora.posterior.base import Covariances, Granularity, Prior, ProjectedJacobians, block_precisions, prior_key
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.label_draws import MANY_CLASSES, label_probs
from laplora.predictive.two_classes import two_class_probs

#: Searched range of a precision. Beyond it the posterior is the prior, or the answer is MAP, to rounding.
LOWEST, HIGHEST = 1e-6, 1e12
#: Points of the grid over the logarithm of one common precision: a factor of 1.8 from each to the next.
PRECISION_GRID = 73

#: Stands for an infinite value, which interpolation cannot take.
_HUGE = 1e30


@dataclass(frozen=True)
class PriorChoice:
    """A prior and how it was chosen.

    Attributes:
        prior: the chosen precisions.
        method: ``evidence`` or ``validation``.
        objective: what was maximised, in nats: the log evidence of the training set, or minus the mean NLL of the
            held-out rows.
        at_bound: precisions that ended at the edge of the searched range.
    """

    prior: Prior
    method: Literal["evidence", "validation"]
    objective: float
    at_bound: tuple[str, ...]


def predictive_nll(
    contrast_mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor
) -> float:
    """Return the mean NLL of labels under the posterior predictive, nats.

    Args:
        contrast_mean: (rows, classes - 1); covariance: (rows, classes - 1, classes - 1).
        labels: (rows,) int64, or soft (``laplora.linearised.cross_entropy``); class_mask: (rows, classes) bool.
    """
    soft, smallest = labels.is_floating_point(), torch.finfo(torch.float64).tiny
    if class_mask.shape[1] > MANY_CLASSES:
        picked = label_probs(contrast_mean, covariance, None if soft else labels, class_mask)
    elif class_mask.shape[1] == 2 and not soft:
        picked = two_class_probs(contrast_mean, covariance, labels)
    else:
        probs = posterior_predictive(contrast_mean, covariance, class_mask).probs
        picked = probs if soft else probs.gather(1, labels[:, None])
    logs = picked.clamp_min(smallest).log()
    return float(cross_entropy(logs, labels.cpu()).mean()) if soft else -float(logs.mean())


def search_precisions(
    objective: Callable[[Prior], float], blocks: Sequence[Block], granularity: Granularity
) -> tuple[Prior, float, tuple[str, ...]]:
    """Return the prior of least objective, its value, and the precisions at the edge of the searched range.

    A grid over one common precision (the objective need not be convex in it) and Brent's method around its best point;
    for ``group``, coordinate descent from there.

    """
    keys = list(dict.fromkeys(prior_key(granularity, b) for b in blocks))

    def prior_at(point: Sequence[float]) -> Prior:
        return Prior(granularity, {k: math.exp(v) for k, v in zip(keys, point, strict=True)})

    def value_at(point: Sequence[float]) -> float:
        return objective(prior_at(point))

    low, high = math.log(LOWEST), math.log(HIGHEST)
    common = grid_minimum(lambda v: value_at([v] * len(keys)), low, high, points=PRECISION_GRID, tolerance=1e-3)
    point = [common] * len(keys)
    if len(keys) > 1:
        point = _coordinate_descent(value_at, point, low, high)
    step = (high - low) / (PRECISION_GRID - 1)
    edge = tuple(k for k, v in zip(keys, point, strict=True) if v <= low + step or v >= high - step)
    return prior_at(point), value_at(point), edge


def _coordinate_descent(
    function: Callable[[Sequence[float]], float], start: Sequence[float], low: float, high: float
) -> list[float]:
    point, value = list(start), function(start)

    def along(i: int, v: float) -> float:
        return function([*point[:i], v, *point[i + 1 :]])

    for _sweep in range(10):
        before = value
        for i in range(len(point)):
            around = max(low, point[i] - 4), min(high, point[i] + 4)
            candidate = grid_minimum(partial(along, i), *around, points=3, tolerance=1e-2)
            score = along(i, candidate)
            if score < value:
                point[i], value = candidate, score
        if before - value < 1e-6:
            break
    return point


def grid_minimum(
    function: Callable[[float], float], low: float, high: float, *, points: int, tolerance: float
) -> float:
    """Return the minimiser of a function between two bounds, to an absolute tolerance around the best grid point.

    Args:
        function: infinite where a point is infeasible.
        points: of the even grid from ``low`` to ``high``.
    """
    from scipy import optimize

    def finite(point: float) -> float:
        return min(function(float(point)), _HUGE)

    grid = [low + (high - low) * i / (points - 1) for i in range(points)]
    values = [finite(point) for point in grid]
    best = min(range(points), key=values.__getitem__)
    around = (grid[max(best - 1, 0)], grid[min(best + 1, points - 1)])
    refined = optimize.minimize_scalar(finite, bounds=around, method="bounded", options={"xatol": tolerance})
    return float(refined.x) if refined.fun < values[best] else grid[best]


def choose_by_validation(
    posterior: Covariances,
    projected: ProjectedJacobians,
    labels: torch.Tensor,
    class_mask: torch.Tensor,
    granularity: Granularity = "scalar",
) -> PriorChoice:
    """Return the precisions of least predictive NLL on held-out rows.

    Args:
        projected: the held-out rows' projected Jacobians.
        labels: (rows,) int64, or soft (``laplora.linearised.cross_entropy``); class_mask: (rows, classes) bool.

    Raises:
        PriorError: no rows.
    """
    if len(labels) == 0:
        raise PriorError("choosing the prior by validation needs held-out rows; use evidence without them")

    def nll(prior: Prior) -> float:
        covariance = posterior.covariance(projected, block_precisions(prior, posterior.blocks))
        return predictive_nll(projected.contrast_mean, covariance, labels, class_mask)

    prior, value, at_bound = search_precisions(nll, posterior.blocks, granularity)
    return PriorChoice(prior, "validation", -value, at_bound)
