"""Choosing the prior precision by the evidence of the training rows; no pass through the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from scipy import optimize

from laplora.errors import PriorError
from laplora.posterior.base import Granularity, Posterior, Prior, block_precisions, prior_key
from laplora.prior.search import HIGHEST, LOWEST, PriorChoice

#: Rounds over the precisions of a joint posterior; each comes nearer by the share of gamma that they share.
_SWEEPS = 100


def choose_by_evidence(
    posterior: Posterior,
    squared_distances: torch.Tensor,
    log_likelihood: float,
    granularity: Granularity = "group",
) -> PriorChoice:
    """Return the precisions of greatest evidence, each the root of ``lambda D = gamma(lambda)``.

    The log evidence, nats, summed over the training rows, is by Laplace's approximation (MacKay 1992; Antoran et al.,
    arXiv 2206.08900), the prior centred at the initial adapter,

        ``log p(D | theta) - 1/2 sum_b lambda_b |W_b - W_b,init|^2 - 1/2 log det ratio``.

    ``lambda D`` grows and ``gamma`` falls with lambda, so each precision has one maximum, given the others: the root of
    ``log lambda + log D - log gamma`` in log lambda, to relative 1e-10. In a joint posterior they see each other, and
    are maximised in turn until none moves.

    Args:
        squared_distances: (blocks,) float64, ``|W - W_init|^2``, the squared Frobenius norms.
        log_likelihood: of the training set at the trained adapter, summed, nats.

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
    prior = Prior(granularity, {key: math.exp(value) for key, value in point.items()})
    at_bound = tuple(key for key, value in point.items() if value in (low, high))
    return PriorChoice(prior, "evidence", log_evidence(posterior, squared_distances, log_likelihood, prior), at_bound)


def log_evidence(posterior: Posterior, squared_distances: torch.Tensor, log_likelihood: float, prior: Prior) -> float:
    """Return the log evidence of the training rows under a prior, nats; its formula is in ``choose_by_evidence``."""
    precisions = block_precisions(prior, posterior.blocks)
    cost = float((precisions * squared_distances).sum()) + float(posterior.log_determinant_ratio(precisions))
    return log_likelihood - 0.5 * cost


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -745.0  # below the smallest float's, so that every value is finite


def _rising_root(function: Callable[[float], float], low: float, high: float, near: float | None) -> float:
    """Return the root of a function of slope one or more, or the bound that it lies beyond.

    Args:
        near: a guess. The root is no further from it than the function's value there.
    """
    function = cache(function)  # the ends are evaluated here and by scipy
    if near is not None and low < near < high:
        value = function(near)
        if abs(value) <= 1e-10:
            return near
        low, high = max(low, min(near, near - value)), min(high, max(near, near - value))
    if function(low) >= 0:
        return low
    if function(high) <= 0:
        return high
    return float(optimize.brentq(function, low, high, xtol=1e-10))
