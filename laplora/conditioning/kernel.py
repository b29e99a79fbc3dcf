"""The kernel between labelled rows, ``k(x, x') = J(x) Sigma J(x')^T``, at any prior precision from one projection.

All rows' contrasts are taken as those of one row: its covariance then holds the covariances between the rows. So the
kernel is exact for the posterior, whatever its rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.posterior.base import Prior, ProjectedJacobians, block_precisions
from laplora.posterior.joint import JointPosterior
from laplora.posterior.joint_solve import solve

#: Bytes that the Jacobians of the labelled rows may take.
MEMORY_BYTES = 6 << 30


@dataclass(frozen=True)
class RowKernel:
    """Labelled rows as a posterior sees them together.

    Attributes:
        posterior: on the CPU; of the blocks that conditioning may move.
        jacobians: per block (rows, directions, wide, narrow) float32, the directions those of the likelihood.
        projected: of all rows as one row of ``rows * directions`` contrasts.
    """

    posterior: JointPosterior
    jacobians: tuple[torch.Tensor, ...]
    projected: ProjectedJacobians

    @classmethod
    def of(cls, posterior: JointPosterior, jacobians: tuple[torch.Tensor, ...]) -> RowKernel:
        """Return the kernel of rows, after the one product of their Jacobians with each other that it takes."""
        parts = tuple(BlockJacobian(part.flatten(0, 1)[None]) for part in jacobians)
        nothing = torch.zeros(1, 2, dtype=torch.float64)
        return cls(posterior, jacobians, posterior.project(ContrastJacobians(nothing, nothing, parts)))

    def __len__(self) -> int:
        return len(self.jacobians[0])

    def at(self, prior: Prior) -> torch.Tensor:
        """Return (rows, directions, rows, directions) float64, nats squared; errors as of ``covariance``."""
        flat = self.posterior.covariance(self.projected, self._precisions(prior))[0]
        rows, directions = self.jacobians[0].shape[:2]
        return flat.view(rows, directions, rows, directions)

    def shift(self, alpha: torch.Tensor, prior: Prior) -> list[torch.Tensor]:
        """Return ``Sigma J^T alpha``, how far conditioning moves the weights: per block (wide, narrow) float64.

        Args:
            alpha: (rows, directions) float64, of ``laplora.conditioning.mode.Mode``.
        """
        pull = [torch.einsum("ncwk,nc->wk", part.double(), alpha) for part in self.jacobians]
        return solve(self.posterior, pull, self._precisions(prior))

    def _precisions(self, prior: Prior) -> torch.Tensor:
        return block_precisions(prior, self.posterior.blocks)


def check_memory(rows: int, directions: int, blocks: Sequence[Block]) -> None:
    """Raise ConfigError where the Jacobians of so many rows would not fit."""
    parameters = sum(block.wide * block.narrow for block in blocks)
    needed = 4 * rows * directions * parameters
    if needed > MEMORY_BYTES:
        raise ConfigError(
            f"conditioning on {rows} rows holds {directions} gradients of {parameters} weights each, {needed:.3g} "
            f"bytes, and the limit is {MEMORY_BYTES:.3g}: use fewer rows, or a subset of fewer matrices"
        )
