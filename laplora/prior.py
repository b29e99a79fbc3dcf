"""Choosing the prior precision: by the evidence, or by the predictive likelihood of held-out rows.

Both look at the posterior only through sums of rational functions of the precision, so a choice costs
milliseconds (evidence) to seconds (validation) and no pass through the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from laplora.errors import PriorError
from laplora.line_search import golden_section
from laplora.posterior import Granularity, Posterior, Prior, ProjectedJacobians, block_precisions, prior_key
from laplora.predictive import posterior_predictive

#: Searched range of a precision. Beyond it the posterior is the prior, or the answer is MAP, to rounding.
LOWEST, HIGHEST = 1e-6, 1e12


@dataclass(frozen=True)
class PriorChoice:
    """A prior and how it was chosen.

    Attributes:
        prior: the chosen precisions.
        method: ``evidence`` or ``validation``.
        objective: what was maximised, in nats: the log evidence of the training set, or minus the mean
            NLL of the held-out rows.
        at_bound: precisions that ended at the edge of the searched range.
    """

    prior: Prior
    method: Literal["evidence", "validation"]
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

    ``lambda D`` grows and ``gamma`` falls with lambda, so each precision has one maximum; bisection in
    log lambda to relative 1e-10.

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
    precision, at_bound = {}, []
    for key, index in members.items():
        distance = float(squared_distances[index].sum())

        def surplus(log_precision: float, index: list[int] = index, distance: float = distance) -> float:
            value = math.exp(log_precision)
            gamma = posterior.effective_dimension(torch.full((len(blocks),), value, dtype=torch.float64))
            return value * distance - float(gamma[index].sum())

        low, high = math.log(LOWEST), math.log(HIGHEST)
        if surplus(low) >= 0:
            high = low
        elif surplus(high) <= 0:
            low = high
        while high - low > 1e-10:
            middle = (low + high) / 2
            low, high = (middle, high) if surplus(middle) < 0 else (low, middle)
        precision[key] = math.exp((low + high) / 2)
        if precision[key] in (math.exp(math.log(LOWEST)), math.exp(math.log(HIGHEST))):
            at_bound.append(key)
    prior = Prior(granularity, precision)
    value = log_evidence(posterior, block_precisions(prior, blocks), squared_distances, log_likelihood)
    return PriorChoice(prior, "evidence", value, tuple(at_bound))


def choose_by_validation(
    posterior: Posterior,
    projected: ProjectedJacobians,
    labels: torch.Tensor,
    class_mask: torch.Tensor,
    granularity: Granularity = "scalar",
) -> PriorChoice:
    """Return the precisions of least predictive NLL on held-out rows.

    A grid over one common precision (the NLL need not be convex in it), then golden-section refinement; for
    ``group``, coordinate descent from there.

    Args:
        projected: the held-out rows' projected Jacobians.
        labels: (rows,) int64; class_mask: (rows, classes) bool.

    Raises:
        PriorError: no rows, or ``module`` granularity, which held-out rows cannot determine.
    """
    if len(labels) == 0:
        raise PriorError("choosing the prior by validation needs held-out rows; use evidence without them")
    if granularity == "module":
        raise PriorError("one precision per module has more unknowns than held-out rows can fix; use evidence")
    blocks = posterior.blocks
    keys = list(dict.fromkeys(prior_key(granularity, b) for b in blocks))

    def nll(log_precisions: Sequence[float]) -> float:
        prior = Prior(granularity, {k: math.exp(v) for k, v in zip(keys, log_precisions, strict=True)})
        covariance = posterior.covariance(projected, block_precisions(prior, blocks))
        probs = posterior_predictive(projected.contrast_mean, covariance, class_mask).probs
        picked = probs.gather(1, labels[:, None]).clamp_min(torch.finfo(torch.float64).tiny)
        return -float(picked.log().mean())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    grid = [low + (high - low) * i / 72 for i in range(73)]
    scores = [nll([g] * len(keys)) for g in grid]
    best = min(range(len(grid)), key=scores.__getitem__)
    step = grid[1] - grid[0]
    point = [golden_section(lambda v: nll([v] * len(keys)), grid[best] - step, grid[best] + step)] * len(keys)
    if len(keys) > 1:
        point = _coordinate_descent(nll, point)
    point = [min(max(v, low), high) for v in point]
    prior = Prior(granularity, {k: math.exp(v) for k, v in zip(keys, point, strict=True)})
    edge = tuple(k for k, v in zip(keys, point, strict=True) if v <= low + step or v >= high - step)
    return PriorChoice(prior, "validation", -nll(point), edge)


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
