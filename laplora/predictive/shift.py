"""What conditioning adds to the contrasts of an input: its Jacobians times how far the weights were moved.

Labels correct the Laplace predictive: its log probabilities ``Q^T log p(x)`` move by ``k(x, X) alpha = J(x) delta + c``
with ``delta = Sigma J(X)^T alpha`` (``laplora.conditioning.mode``) and a constant c. So an answer needs ``delta``, as
many numbers as the weights, and not the Jacobians of the labelled rows.

Averaging over the posterior divides the contrasts by about ``kappa = sqrt(1 + pi/4 v)`` with v their variance (MacKay
1992, *The evidence framework applied to classification networks*; the difference of two logits has the variance 2 v).
So the mean of the contrasts moves by ``kappa`` times as much as the log probabilities do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block, ContrastJacobians


@dataclass(frozen=True)
class Shift:
    """How far conditioning moves the weights of some blocks.

    Attributes:
        blocks: which.
        weights: per block (wide, narrow), in the orientation of the Jacobians.
        constant: (directions,), added to every input's, nats.
    """

    blocks: tuple[Block, ...]
    weights: tuple[torch.Tensor, ...]
    constant: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Shift:
        """Return the shift on a device, in a number format."""
        weights = tuple(weight.to(device, dtype) for weight in self.weights)
        return replace(self, weights=weights, constant=self.constant.to(device, torch.float64))

    def of(self, jacobians: ContrastJacobians, blocks: tuple[Block, ...]) -> torch.Tensor:
        """Return what it adds to a batch's log probabilities, (batch, directions) float64, nats.

        Args:
            jacobians: of ``blocks``, which hold those of the shift.

        Raises:
            ConfigError: Jacobians without one of its blocks.
        """
        places = {block.name: i for i, block in enumerate(blocks)}
        missing = [block.name for block in self.blocks if block.name not in places]
        if missing:
            raise ConfigError(f"the Jacobians are not of {missing[0]}, which conditioning moves")
        total = self.constant.double().expand(len(jacobians.logits), -1)
        for block, weight in zip(self.blocks, self.weights, strict=True):
            jacobian = jacobians.blocks[places[block.name]].jacobian
            total = total.to(jacobian.device) + (jacobian.to(weight.dtype).flatten(2) @ weight.flatten()).double()
        return total


def tempering(covariance: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return ``kappa`` (rows, 1) float64, by which averaging over the posterior divides a row's contrasts.

    Args:
        covariance: (rows, classes - 1, classes - 1) of the contrasts, nats squared.
        class_mask: (rows, classes) bool; v is the mean variance of a row's possible contrasts.
    """
    variances = covariance.double().diagonal(dim1=-2, dim2=-1).clamp_min(0)
    possible = class_mask[:, 1:].to(variances)
    mean = (variances * possible).sum(-1, keepdim=True) / possible.sum(-1, keepdim=True)
    return (1 + math.pi / 4 * mean).sqrt()


def label_tempering(covariance: torch.Tensor) -> torch.Tensor:
    """Return the same for each label where several may be right, (rows, labels) float64.

    Args:
        covariance: (rows, labels, labels) of the labels' logits, whose contrasts have half the variance.
    """
    return (1 + math.pi / 8 * covariance.double().diagonal(dim1=-2, dim2=-1).clamp_min(0)).sqrt()
