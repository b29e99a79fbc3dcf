"""The interface of every posterior over the LoRA weights, and their common prior.

A posterior is a Gaussian at the trained weights whose precision is the prior's plus the curvature of the training loss.
``project`` sees a batch's Jacobians once; every prior precision is then answered from what it kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from laplora.errors import PriorError
from laplora.jacobians.blocks import Block, ContrastJacobians

Granularity = Literal["scalar", "group"]
#: By a block's name the device that its Jacobians are on, of a model that is spread over several.
BlockDevices = Mapping[str, torch.device]


@dataclass(frozen=True)
class Prior:
    """Gaussian prior N(W_init, 1/precision) on each block, centred at its initial value; at zero where that is unknown.

    Attributes:
        granularity: ``scalar`` (one precision) or ``group`` (one for each of ``lora_A``, ``lora_B`` and ``head``).
        precision: by ``"all"``, or by ``"lora_A"``, ``"lora_B"`` and ``"head"``.
    """

    granularity: Granularity
    precision: dict[str, float]


@dataclass(frozen=True)
class ProjectedJacobians:
    """A batch's logits, and its Jacobians as far as the posterior looks at them.

    Attributes:
        contrast_mean: (batch, classes - 1), ``Q^T f``, nats.
        kept: (batch, classes - 1, kept), coordinates in the directions that the posterior tells apart.
        rest: (batch, classes - 1, classes - 1, parts), inner products of the Jacobians in the other directions.
        directions: (batch, classes - 1, m), where the Jacobians are those of m directions in the contrasts, and
            ``kept`` and ``rest`` too (``laplora.posterior.many_classes``). None: of the contrasts.
        fold: (batch,) int64, whose posterior each row was projected by (``training.calibration.fold_adapters``). None:
            one's.
    """

    contrast_mean: torch.Tensor
    kept: torch.Tensor
    rest: torch.Tensor
    directions: torch.Tensor | None = None
    fold: torch.Tensor | None = None

    def take(self, rows: torch.Tensor) -> ProjectedJacobians:
        some: list[Any] = [None if column is None else column[rows] for column in vars(self).values()]
        return ProjectedJacobians(*some)

    @classmethod
    def joined(cls, parts: Sequence[ProjectedJacobians]) -> ProjectedJacobians:
        """Return the rows of parts that have the same fields, one part after the other."""
        fields = zip(*(vars(part).values() for part in parts), strict=True)
        together: list[Any] = [None if of_parts[0] is None else torch.cat(of_parts) for of_parts in fields]
        return cls(*together)


class Covariances(Protocol):
    """Gives the covariances of projected rows under any prior.

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

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts, (batch, classes - 1, classes - 1) float64, nats squared."""


class Posterior(Covariances, Protocol):
    """Curvature of the training loss at the trained adapter."""

    def to(self, device: torch.device | str, dtype: torch.dtype, by_block: BlockDevices | None = None) -> Posterior:
        """Return the posterior on a device, what multiplies Jacobians in a number format.

        Args:
            by_block: where what multiplies a block's Jacobians goes, by its name; None: on the device too. Sums over
                blocks are on the device of a batch's logits.
        """

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """Return what the covariance needs of a batch's Jacobians, whatever the prior."""

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the same straight from the Jacobians; at least as exact as the two steps."""

    def log_determinant_ratio(self, precisions: torch.Tensor) -> torch.Tensor:
        """Return the log determinant of the posterior precision relative to the prior's, a scalar, nats."""

    def effective_dimension(self, precisions: torch.Tensor) -> torch.Tensor:
        """Return ``gamma``, how many parameters the data determine, per block, (blocks,) float64 (MacKay 1992)."""


def moved(
    tensors: Sequence[torch.Tensor],
    blocks: Sequence[Block],
    device: torch.device | str,
    dtype: torch.dtype,
    by_block: BlockDevices | None,
) -> tuple[torch.Tensor, ...]:
    """Return a tensor for each block where ``Posterior.to`` puts it."""
    places = by_block or {}
    return tuple(t.to(places.get(b.name, device), dtype) for t, b in zip(tensors, blocks, strict=True))


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in its number format, or in float32 where that has fewer digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def block_precisions(prior: Prior, blocks: Sequence[Block]) -> torch.Tensor:
    """Return the prior precision of each block, (blocks,) float64.

    Raises:
        PriorError: a precision missing, NaN or not positive.
    """
    keys = [prior_key(prior.granularity, b) for b in blocks]
    missing = sorted(set(keys) - prior.precision.keys())
    if missing:
        raise PriorError(f"the prior has no precision for {missing[:4]}")
    values = torch.tensor([prior.precision[k] for k in keys], dtype=torch.float64)
    if not bool((values > 0).all()):
        raise PriorError("prior precisions must be positive numbers")
    return values


def prior_key(granularity: Granularity, block: Block) -> str:
    """Return the name under which a prior holds a block's precision."""
    return "all" if granularity == "scalar" else block.group
