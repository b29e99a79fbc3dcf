"""What a fit's predictives are made of on one split: means and covariances."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.fitting.projected import ProjectedSplit
from laplora.posterior.base import Covariances, Prior, ProjectedJacobians, block_precisions
from laplora.predictive.kinds import PREDICTIVES, PredictiveName


@dataclass(frozen=True)
class Fitted:
    """One adapter's posterior under its prior, and a split's rows as it sees them, in the split's row order.

    Of out-of-fold rows it is that of several adapters, one prior for all.
    """

    posterior: Covariances
    prior: Prior
    projected: ProjectedJacobians

    def covariance(self, prior: Prior | None = None) -> torch.Tensor:
        """Return the contrasts' covariance, (rows, classes - 1, classes - 1) float64, under its prior by default."""
        return self.posterior.covariance(self.projected, block_precisions(prior or self.prior, self.posterior.blocks))


@dataclass(frozen=True)
class SplitOutputs:
    """Everything that an adapter's predictives need of one split."""

    split: ProjectedSplit
    fitted: Fitted

    def moments(self, name: PredictiveName, prior: Prior | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a predictive's mean (rows, classes - 1) and covariance, under its prior by default."""
        covariance = self.fitted.covariance(prior) if PREDICTIVES[name].covariance else None
        return self.split.projected.contrast_mean, covariance
