"""Class probabilities under a Gaussian over the class logits.

With the contrasts ``z ~ N(m, V)`` (``laplora.linearised``) the predictive averages probabilities, never logits:

    probs = E[softmax(Q z)]

Rows with two possible classes are integrated by a trapezoid rule, which converges exponentially for an analytic
integrand that decays at both ends. Rows with more use scrambled Sobol points in antithetic pairs (Owen 1998) with a
fixed seed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from laplora.errors import ConfigError, DataError, FactorizationError
from laplora.linearised import PosteriorPredictive, class_counts, contrast_logits
from laplora.metrics.checks import check_finite

#: Trapezoid nodes over +-8.5 standard deviations: the mean is right to 1e-11 for logit variances up to 1e4.
NODES = 2049
REACH = 8.5

#: Sobol points of a row with more than two classes, antithetic partners included.
SOBOL_POINTS = 512

#: An eigenvalue this far below 0 (nats^2) cannot change a probability visibly: it is rounding, and clamped.
_NEGATIVE_ROUNDING = 1e-6

#: Elements per temporary, of two classes and of more; larger batches are split by rows. The first fits a core's cache.
_BLOCK_OF_TWO, _BLOCK = 1 << 15, 1 << 21


def posterior_predictive(
    contrast_mean: torch.Tensor,
    contrast_covariance: torch.Tensor,
    class_mask: torch.Tensor,
    *,
    samples: int | None = None,
) -> PosteriorPredictive:
    """Return the mean, spread and expected entropy of softmax(Q z), z ~ N(mean, covariance).

    A row's answer depends on that row and ``samples`` alone, not on the other rows nor any global random state.

    Args:
        contrast_mean: (batch, classes - 1) Q^T f, nats.
        contrast_covariance: (batch, classes - 1, classes - 1) symmetric positive semi-definite, nats^2.
            At exactly 0 the answer is softmax(f).
        class_mask: (batch, classes) bool, true for the possible classes: the first c >= 2 of each row.
        samples: Sobol points, antithetic partners included; a power of two, at least 4. None: ``SOBOL_POINTS``.

    Raises:
        ConfigError: bad ``samples``.
        DataError: shapes that do not fit, or a class mask that is not a prefix of at least two classes.
        NonFiniteError: NaN or infinity in the mean or the covariance of the possible classes.
        FactorizationError: a covariance that is not positive semi-definite beyond rounding.
    """
    samples = SOBOL_POINTS if samples is None else samples
    if samples < 4 or samples & (samples - 1):
        raise ConfigError(f"samples must be a power of two, at least 4 (Sobol's balance needs it), got {samples}")
    mean = contrast_mean.detach().to("cpu", torch.float64)
    covariance = contrast_covariance.detach().to("cpu", torch.float64)
    counts = _class_counts(mean, covariance, class_mask.detach().cpu())

    probs = torch.zeros(class_mask.shape, dtype=torch.float64)
    std = torch.zeros_like(probs)
    expected_entropy = torch.zeros(len(probs), dtype=torch.float64)
    for count in sorted(set(counts.tolist())):
        together = _BLOCK_OF_TWO // NODES if count == 2 else max(1, _BLOCK // (samples * count))
        every = (counts == count).nonzero()[:, 0]
        m, v = mean[every, : count - 1], covariance[every, : count - 1, : count - 1]
        check_finite(m, "the logits' mean")
        check_finite(v, "the logits' covariance")
        root = symmetric_root((v + v.mT) / 2)
        for part in torch.split(torch.arange(len(every)), together):
            rows, centre, spread = every[part], m[part], root[part]
            moments = _quadrature(centre, spread) if count == 2 else _sobol(centre, spread, samples)
            probs[rows, :count], std[rows, :count], expected_entropy[rows] = moments
    return PosteriorPredictive(probs, std, expected_entropy)


def _class_counts(mean: torch.Tensor, covariance: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (batch,) how many classes are possible, after checking every shape."""
    counts = class_counts(class_mask)
    batch, classes = class_mask.shape
    if mean.shape != (batch, classes - 1) or covariance.shape != (batch, classes - 1, classes - 1):
        raise DataError(
            f"for a class mask of {(batch, classes)} the contrast mean must be {(batch, classes - 1)} and the "
            f"covariance {(batch, classes - 1, classes - 1)}, got {tuple(mean.shape)} and {tuple(covariance.shape)}"
        )
    return counts


def symmetric_root(covariance: torch.Tensor) -> torch.Tensor:
    """Return R (batch, d, d), symmetric, with R R = covariance; exact at singular covariances.

    The symmetric root is continuous in V and free of the eigenvectors' arbitrary signs, so that rounding in V does not
    pick other sample points.
    """
    values, vectors = torch.linalg.eigh(covariance)
    lowest = values[:, 0]
    if (lowest < -_NEGATIVE_ROUNDING * values[:, -1].clamp_min(1)).any():
        raise FactorizationError(
            f"a logit covariance has the eigenvalue {lowest.min().item():.3g}: it must be positive semi-definite"
        )
    root: torch.Tensor = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT
    return root


def _quadrature(mean: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the moments of two classes, whose logit difference d is sqrt 2 times the one contrast.

    With ``e = exp(-|d|)`` the probabilities are ``1 / (1 + e)`` and ``e / (1 + e)``, the entropy is ``log(1 + e) + |d|
    e / (1 + e)``: no digit is lost where one of them is near 1.
    """
    nodes, weights = _rule()
    difference = math.sqrt(2) * (mean + root[:, 0] * nodes)  # (batch, nodes)
    size = difference.abs()
    ratio = (-size).exp_()
    larger = (1 + ratio).reciprocal_()
    smaller = ratio * larger
    expected_entropy = ratio.log1p_().add_(size.mul_(smaller)).mul_(weights).sum(1)
    first_leads = difference > 0
    first, second = torch.where(first_leads, larger, smaller), torch.where(first_leads, smaller, larger)
    probs = torch.stack([(first * weights).sum(1), (second * weights).sum(1)], 1)
    # Both vary alike. About the mean, not E[p^2] - E[p]^2: that difference loses every digit at small variances.
    less_likely = torch.where(probs[:, :1] < probs[:, 1:], first, second)
    variance = less_likely.sub_(probs.amin(1, keepdim=True)).square_().mul_(weights).sum(1)
    return probs / probs.sum(1, keepdim=True), variance.sqrt()[:, None], expected_entropy


@lru_cache(maxsize=1)
def _rule() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the trapezoid rule's nodes and weights, (nodes,), of a standard normal; shared, never written to."""
    nodes = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    return nodes, torch.softmax(-nodes * nodes / 2, 0)


def _sobol(mean: torch.Tensor, root: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the moments over antithetic Sobol points."""
    half = normal_points(mean.shape[1], samples)[: samples // 2] @ contrast_logits(root)  # the first of each pair
    centre = contrast_logits(mean)[:, None]
    log_probs = torch.log_softmax(torch.cat([centre + half, centre - half], 1), 2)
    return _moments(log_probs, torch.full((samples,), 1 / samples, dtype=torch.float64))


@lru_cache(maxsize=64)
def normal_points(dimension: int, samples: int) -> torch.Tensor:
    """Return (samples, dimension) standard normal points whose mean is exactly 0; shared, never written to."""
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)  # type: ignore[no-untyped-call]
    # Points are multiples of 2^-30 and include 0, where the normal quantile is -inf: move to the cell's centre.
    uniform = engine.draw(samples // 2, dtype=torch.float64) + 2.0**-31
    half = torch.special.ndtri(uniform)
    return torch.cat([half, -half])


def _moments(log_probs: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weighted mean, standard deviation (batch, classes) and mean entropy (batch,).

    Args:
        log_probs: (batch, points, classes), finite.
        weights: (points,), sums to 1.
    """
    probs = log_probs.exp()
    w = weights[:, None]
    mean = (w * probs).sum(1)
    # About the mean, not E[p^2] - E[p]^2: that difference loses every digit at small variances.
    std = (w * (probs - mean[:, None]).square()).sum(1).sqrt()
    expected_entropy = -(w * probs * log_probs).sum((1, 2))
    return mean / mean.sum(1, keepdim=True), std, expected_entropy
