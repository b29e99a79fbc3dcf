"""Choosing the prior precision by the predictive likelihood of held-out rows; no pass through the model."""

from __future__ import annotations

import torch

from laplora.errors import PriorError
from laplora.posterior.base import Covariances, Granularity, Prior, ProjectedJacobians, block_precisions
from laplora.prior.search import PriorChoice, predictive_nll, search_precisions


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
