"""What a fit's predictives are made of on one split: means and covariances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from laplora.experts.last_state import corrected_mean
from laplora.fitting.projected import ProjectedSplit
from laplora.posterior.base import Covariances, Prior, ProjectedJacobians, block_precisions
from laplora.predictive.kinds import PREDICTIVES, Corrected, PredictiveName
from laplora.predictive.shift import Shift


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
    """Everything that a fit's predictives need of one split.

    Attributes:
        shifts: by predictive, what labels of other rows, or of these, add to its log probabilities.
    """

    split: ProjectedSplit
    fitted: Fitted
    shifts: Mapping[Corrected, Shift] = field(default_factory=dict)

    def moments(self, name: PredictiveName, prior: Prior | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a predictive's mean (rows, classes - 1) and covariance, under its prior by default."""
        spec, split = PREDICTIVES[name], self.split
        mean = split.projected.contrast_mean
        covariance = self.fitted.covariance(prior) if spec.covariance else None
        if spec.mean != "plain":
            assert split.last is not None
            mean = corrected_mean(self.shifts[spec.mean], mean, covariance, split.class_mask, split.last)
        return mean, covariance
