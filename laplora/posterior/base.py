"""The Laplace posterior over LoRA weights: what every form of it answers, and the prior they share.

A posterior is a Gaussian at the trained weights whose precision is the prior's plus the curvature of the
training loss, in one of several forms (``laplora.posterior.structures``). Each form sees a batch's Jacobians once, in
``project``; every prior precision is then answered from what it kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from laplora.errors import PriorError
from laplora.jacobians.blocks import Block, ContrastJacobians

Granularity = Literal["scalar", "group", "module"]


@dataclass(frozen=True)
class Prior:
    """Gaussian prior N(W_init, 1/precision) on each block, centred at the initial adapter.

    Attributes:
        granularity: one precision in all (``scalar``), one per ``lora_A`` and ``lora_B`` (``group``), or one
            per block (``module``).
        precision: by ``"all"``, by group, or by block name.
    """

    granularity: Granularity
    precision: dict[str, float]


@dataclass(frozen=True)
class ProjectedJacobians:
    """A batch's logits, and its Jacobians as far as the posterior looks at them.

    What the last axis of ``kept`` and of ``rest`` counts belongs to the posterior's form.

    Attributes:
        contrast_mean: (batch, classes - 1), ``Q^T f``, nats.
        kept: (batch, classes - 1, kept), coordinates in the directions that the form tells apart.
        rest: (batch, classes - 1, classes - 1, parts), inner products of the Jacobians in the other directions.
    """

    contrast_mean: torch.Tensor
    kept: torch.Tensor
    rest: torch.Tensor


class Posterior(Protocol):
    """Curvature of the training loss at the trained adapter, in one form.

    Every ``precisions`` is (blocks,) float64 from ``block_precisions``, on the posterior's device.
    """

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Which blocks it covers, in order; other weights have no variance."""

    @property
    def rows(self) -> int:
        """Training rows summed."""

    @property
    def structure(self) -> str:
        """Which of ``laplora.posterior.structures.STRUCTURES``."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Posterior:
        """Return the posterior on a device, what multiplies Jacobians in a number format."""

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """Return what the covariance needs of a batch's Jacobians, whatever the prior."""

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts, (batch, classes - 1, classes - 1) float64, nats squared."""

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the same straight from the Jacobians; at least as exact as the two steps."""

    def log_determinant_ratio(self, precisions: torch.Tensor) -> torch.Tensor:
        """Return the log determinant of the posterior precision relative to the prior's, a scalar, nats."""

    def effective_dimension(self, precisions: torch.Tensor) -> torch.Tensor:
        """Return how many parameters the data determine, per block, (blocks,) float64 (MacKay 1992)."""


def block_precisions(prior: Prior, blocks: Sequence[Block]) -> torch.Tensor:
    """Return the prior precision of each block, (blocks,) float64.

    Raises:
        PriorError: a precision missing, not finite or not positive.
    """
    keys = [prior_key(prior.granularity, b) for b in blocks]
    missing = sorted({k for k in keys if k not in prior.precision})
    if missing:
        raise PriorError(f"the prior has no precision for {missing[:4]}")
    values = torch.tensor([prior.precision[k] for k in keys], dtype=torch.float64)
    if not bool((values > 0).all()) or bool(values.isnan().any()):
        raise PriorError("prior precisions must be positive numbers")
    return values


def prior_key(granularity: Granularity, block: Block) -> str:
    """Return the name under which a prior holds a block's precision."""
    return {"scalar": "all", "group": block.group, "module": block.name}[granularity]
