"""The expected place of labels that have an order, and how far a posterior moves it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.linearised import contrasts
from laplora.pool.pool import uncentred
from laplora.predictive.gaussian import normal_points, symmetric_root

#: Quasi-random points of a row's logits: its error is right to about 2 %.
_POINTS = 256


@dataclass(frozen=True)
class ExpectedLabel:
    """The expected place, from 0: the sum of place times probability.

    Attributes:
        std: how far plausible weights move it, a standard deviation over the posterior, not how far true labels are
            from it; None of a predictive without a spread.
    """

    place: float
    std: float | None


def expected_labels(probs: torch.Tensor, logits: torch.Tensor, root: torch.Tensor | None) -> list[ExpectedLabel]:
    """Return that of each row.

    Args:
        probs: (rows, classes); logits: (rows, classes) that vary, nats; root: (rows, classes, side) of their covariance
            under the posterior (``root_of``); None without one.
    """
    places = torch.arange(probs.shape[1], dtype=torch.float64)
    expected = probs.double() @ places
    if root is None:
        return [ExpectedLabel(place, None) for place in expected.tolist()]
    draws = logits.double().cpu()[:, None] + normal_points(root.shape[2], _POINTS) @ root.mT
    std = (draws.softmax(-1) @ places).std(1, unbiased=False)
    # A part of the labels' own variance. Heads answer at their mode, about which a wide posterior could vary more.
    most = (probs.double() @ places.square() - expected.square()).clamp_min(0).sqrt()
    return [ExpectedLabel(*pair) for pair in zip(expected.tolist(), std.minimum(most).tolist(), strict=True)]


def root_of(covariance: torch.Tensor | None, variance: torch.Tensor | None) -> torch.Tensor | None:
    """Return R (rows, classes, side), ``R R^T`` the covariance of logits; None without a spread.

    Args:
        covariance: (rows, classes - 1, classes - 1) of the contrasts.
        variance: (rows, classes) of a head's logits less their mean, which are taken for independent, as in a pool; it
            goes first.
    """
    if variance is not None:
        free = uncentred(variance.double(), torch.ones_like(variance, dtype=torch.bool))
        basis = contrasts(variance.shape[1])
        covariance = basis.T @ torch.diag_embed(free) @ basis
    if covariance is None:
        return None
    return contrasts(covariance.shape[-1] + 1) @ symmetric_root(covariance.double().cpu())
