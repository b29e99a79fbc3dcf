"""What a fit's predictives are made of on one split: means and covariances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from laplora.fitting.projected import ProjectedSplit
from laplora.posterior.base import Covariances, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.binary import binary_means
from laplora.predictive.kinds import PREDICTIVES, Corrected, PredictiveName
from laplora.predictive.shift import Shift, tempering


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
        moved: by predictive (rows, classes - 1), what the calibration rows' labels add to the log probabilities.
        temperature: of the predictive ``conditioned``.
    """

    split: ProjectedSplit
    fitted: Fitted
    moved: Mapping[Corrected, torch.Tensor] = field(default_factory=dict)
    temperature: float = 1.0

    def moments(self, name: PredictiveName, prior: Prior | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a predictive's mean (rows, classes - 1) and covariance, under its prior by default."""
        spec = PREDICTIVES[name]
        single = self.split.projected.contrast_mean
        if spec.mean == "conditioned":
            return single + self.temperature * self.moved[spec.mean], None
        if not spec.covariance:
            return single, None
        covariance = self.fitted.covariance(prior)
        if spec.mean == "laplace_conditioned":
            single = single + tempering(covariance, self.split.class_mask) * self.moved[spec.mean]
        return single, covariance


def corrected(outputs: SplitOutputs, shifts: Mapping[Corrected, Shift]) -> SplitOutputs:
    """Return outputs with what labels of other rows add to the log probabilities, by predictive."""
    split = outputs.split
    moved: dict[Corrected, torch.Tensor] = {}
    for kind, shift in shifts.items():
        assert split.last is not None
        added = shift.of(split.last)
        moved[kind] = binary_means(added) if split.together > 1 else added
    temperature = shifts["conditioned"].temperature if "conditioned" in shifts else 1.0
    return replace(outputs, moved=moved, temperature=temperature)
