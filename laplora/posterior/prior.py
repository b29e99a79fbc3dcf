"""Choosing the prior precision: by the evidence, or by the predictive likelihood of held-out rows.

Both look at the posterior only through sums of rational functions of the precision, so a choice costs
milliseconds (evidence) to seconds (validation) and no pass through the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from laplora.errors import PriorError
from laplora.jacobians.blocks import Block
from laplora.posterior.base import Granularity, Posterior, Prior, ProjectedJacobians, block_precisions, prior_key
from laplora.posterior.line_search import golden_section
from laplora.predictive.gaussian import posterior_predictive

#: Searched range of a precision. Beyond it the posterior is the prior, or the answer is MAP, to rounding.
LOWEST, HIGHEST = 1e-6, 1e12

#: Rounds over the precisions of a joint posterior; each comes nearer by the share of gamma that they share.
_SWEEPS = 100


@dataclass(frozen=True)
class PriorChoice:
    """A prior and how it was chosen.

    Attributes:
        prior: the chosen precisions.
        method: ``evidence``, ``validation`` or ``leave_one_out``.
        objective: what was maximised, in nats: the log evidence of the training set, or minus the mean
            NLL of the held-out rows, or of the training rows, each predicted without itself.
        at_bound: precisions that ended at the edge of the searched range.
    """

    prior: Prior
    method: Literal["evidence", "validation", "leave_one_out"]
    objective: float
    at_bound: tuple[str, ...]


def log_evidence(
    posterior: Posterior, precisions: torch.Tensor, squared_distances: torch.Tensor, log_likelihood: float
) -> float:
    """Return the Laplace approximation of the log evidence, nats, summed over the training rows.

    ``log p(D | theta) - 1/2 sum_b lambda_b |W_b - W_b,init|^2 - 1/2 log det ratio`` (MacKay 1992; Antoran et
    al., arXiv 2206.08900), the prior centred at the initial adapter.

    Args:
        precisions: (blocks,) prior precisions.
        squared_distances: (blocks,) ``|W - W_init|^2``, the squared Frobenius norms.
        log_likelihood: of the training set at the trained adapter, summed, nats.
    """
    penalty = (precisions * squared_distances).sum()
    return log_likelihood - 0.5 * float(penalty) - 0.5 * float(posterior.log_determinant_ratio(precisions))


def choose_by_evidence(
    posterior: Posterior,
    squared_distances: torch.Tensor,
    log_likelihood: float,
    granularity: Granularity = "group",
) -> PriorChoice:
    """Return the precisions of greatest evidence, each the root of ``lambda D = gamma(lambda)``.

    ``lambda D`` grows and ``gamma`` falls with lambda, so each precision has one maximum, given the others: the root of
    ``log lambda + log D - log gamma`` in log lambda, to relative 1e-10. In a block-diagonal posterior the precisions do
    not see each other; in a joint one they are maximised in turn until none moves.

    Args:
        squared_distances: (blocks,) float64.
        log_likelihood: of the training set, summed, nats.

    Raises:
        PriorError: distances or likelihood that are not finite.
    """
    if not bool(squared_distances.isfinite().all()) or not math.isfinite(log_likelihood):
        raise PriorError("the evidence needs finite squared distances and a finite log-likelihood")
    blocks = posterior.blocks
    members: dict[str, list[int]] = {}
    for i, block in enumerate(blocks):
        members.setdefault(prior_key(granularity, block), []).append(i)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    point: dict[str, float] = {}

    def gap(key: str, log_precision: float) -> float:
        precisions = torch.zeros(len(blocks), dtype=torch.float64)
        for other, index in members.items():
            precisions[index] = math.exp(log_precision if other == key else point.get(other, 0.0))
        gamma = float(posterior.effective_dimension(precisions)[members[key]].sum())
        return log_precision + _log(float(squared_distances[members[key]].sum())) - _log(gamma)

    for _sweep in range(_SWEEPS):
        for key in members:
            point[key] = _rising_root(partial(gap, key), low, high, point.get(key))
        if all(abs(gap(key, value)) <= 1e-8 for key, value in point.items() if value not in (low, high)):
            break
    precision = {key: math.exp(value) for key, value in point.items()}
    at_bound = [key for key, value in point.items() if value in (low, high)]
    prior = Prior(granularity, precision)
    value = log_evidence(posterior, block_precisions(prior, blocks), squared_distances, log_likelihood)
    return PriorChoice(prior, "evidence", value, tuple(at_bound))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _rising_root(function: Callable[[float], float], low: float, high: float, near: float | None = None) -> float:
    """Return the root of a function of slope one or more, or the bound that it lies beyond.

    False position with the Illinois step (Dowell and Jarratt, 1971); bisection where an end has no finite value.

    Args:
        near: a guess. The root is no further from it than the function's value there.
    """
    if near is not None and low < near < high and math.isfinite(value := function(near)):
        if abs(value) <= 1e-10:
            return near
        low, high = max(low, min(near, near - value)), min(high, max(near, near - value))
    at_low, at_high = function(low), function(high)
    if at_low >= 0:
        return low
    if at_high <= 0:
        return high
    before = 0.0
    while high - low > 1e-10:
        finite = math.isfinite(at_low) and math.isfinite(at_high)
        point = (low * at_high - high * at_low) / (at_high - at_low) if finite else (low + high) / 2
        value = function(point)
        if abs(value) <= 1e-10:  # no further than this from the root
            return point
        again = value * before > 0  # the other end stayed where it was, and is halved so that it moves
        before = value
        if value < 0:
            low, at_low, at_high = point, value, at_high / 2 if again else at_high
        else:
            high, at_high, at_low = point, value, at_low / 2 if again else at_low
    return (low + high) / 2


def choose_by_validation(
    posterior: Posterior,
    projected: ProjectedJacobians,
    labels: torch.Tensor,
    class_mask: torch.Tensor,
    granularity: Granularity = "scalar",
) -> PriorChoice:
    """Return the precisions of least predictive NLL on held-out rows.

    The search is ``search_precisions``.

    Args:
        projected: the held-out rows' projected Jacobians.
        labels: (rows,) int64; class_mask: (rows, classes) bool.

    Raises:
        PriorError: no rows, or ``module`` granularity, which held-out rows cannot determine.
    """
    if len(labels) == 0:
        raise PriorError("choosing the prior by validation needs held-out rows; use evidence without them")

    def nll(prior: Prior) -> float:
        covariance = posterior.covariance(projected, block_precisions(prior, posterior.blocks))
        return predictive_nll(projected.contrast_mean, covariance, labels, class_mask)

    prior, value, at_bound = search_precisions(nll, posterior.blocks, granularity)
    return PriorChoice(prior, "validation", -value, at_bound)


def predictive_nll(
    contrast_mean: torch.Tensor, covariance: torch.Tensor, labels: torch.Tensor, class_mask: torch.Tensor
) -> float:
    """Return the mean NLL of labels under the posterior predictive, nats.

    Args:
        contrast_mean: (rows, classes - 1); covariance: (rows, classes - 1, classes - 1).
        labels: (rows,) int64; class_mask: (rows, classes) bool.
    """
    probs = posterior_predictive(contrast_mean, covariance, class_mask).probs
    picked = probs.gather(1, labels[:, None]).clamp_min(torch.finfo(torch.float64).tiny)
    return -float(picked.log().mean())


def search_precisions(
    objective: Callable[[Prior], float], blocks: Sequence[Block], granularity: Granularity
) -> tuple[Prior, float, tuple[str, ...]]:
    """Return the prior of least objective, its value, and the precisions at the edge of the searched range.

    A grid over one common precision (the objective need not be convex in it), then golden-section refinement; for
    ``group``, coordinate descent from there.

    Args:
        objective: of a prior; infinite where the prior is infeasible.

    Raises:
        PriorError: ``module`` granularity, which so few rows cannot determine.
    """
    if granularity == "module":
        raise PriorError("one precision per module has more unknowns than held-out rows can fix; use evidence")
    keys = list(dict.fromkeys(prior_key(granularity, b) for b in blocks))

    def prior_at(point: Sequence[float]) -> Prior:
        return Prior(granularity, {k: math.exp(v) for k, v in zip(keys, point, strict=True)})

    def value_at(point: Sequence[float]) -> float:
        return objective(prior_at(point))

    low, high = math.log(LOWEST), math.log(HIGHEST)
    grid = [low + (high - low) * i / 72 for i in range(73)]
    scores = [value_at([g] * len(keys)) for g in grid]
    best = min(range(len(grid)), key=scores.__getitem__)
    step = grid[1] - grid[0]
    point = [golden_section(lambda v: value_at([v] * len(keys)), grid[best] - step, grid[best] + step)] * len(keys)
    if len(keys) > 1:
        point = _coordinate_descent(value_at, point)
    point = [min(max(v, low), high) for v in point]
    edge = tuple(k for k, v in zip(keys, point, strict=True) if v <= low + step or v >= high - step)
    return prior_at(point), value_at(point), edge


def _coordinate_descent(function: Callable[[Sequence[float]], float], start: Sequence[float]) -> list[float]:
    point, value = list(start), function(start)
    for _sweep in range(10):
        before = value
        for i in range(len(point)):

            def along(v: float, i: int = i) -> float:
                return function([*point[:i], v, *point[i + 1 :]])

            candidate = golden_section(along, point[i] - 4, point[i] + 4, 1e-2)
            score = along(candidate)
            if score < value:
                point[i], value = candidate, score
        if before - value < 1e-6:
            break
    return point
