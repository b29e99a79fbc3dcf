"""The block-diagonal posterior in Kronecker eigenbases, one block per LoRA matrix.

Each block's posterior precision is ``lambda I`` plus the GGN in the block's Kronecker eigenbasis: ``s_aj`` in the kept
directions, ``tau_j`` in the rest of column j. The covariance is a sum of rational functions of the prior precision
``lambda``, so one set of projected Jacobians serves every ``lambda``, and no matrix is inverted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.posterior.base import BlockDevices, ProjectedJacobians, moved


@dataclass(frozen=True)
class Spectrum:
    """A posterior's eigenvalues, flat.

    Attributes:
        curvature: (eigenvalues,) float64; count: (eigenvalues,) float64, the multiplicity of each.
        block: (eigenvalues,) int64, its block's index.
    """

    curvature: torch.Tensor
    count: torch.Tensor
    block: torch.Tensor


@dataclass(frozen=True)
class EigenPosterior:
    """Curvature of every block in its eigenbasis.

    Attributes:
        blocks: which blocks, in order.
        wide: per block (wide, k), orthonormal columns.
        narrow: per block (narrow, narrow), orthonormal.
        scale: per block (k, narrow), curvature ``s_aj`` summed over the training rows.
        tail: per block (narrow,), ``tau_j``, the mean curvature of the dropped directions.
        rows: training rows summed.
        structure: where ``scale`` comes from: ``ekfac``, measured in the bases, or ``kfac_reduce``, of the factors.
    """

    blocks: tuple[Block, ...]
    wide: tuple[torch.Tensor, ...]
    narrow: tuple[torch.Tensor, ...]
    scale: tuple[torch.Tensor, ...]
    tail: tuple[torch.Tensor, ...]
    rows: int
    structure: str

    def to(
        self, device: torch.device | str, dtype: torch.dtype, by_block: BlockDevices | None = None
    ) -> EigenPosterior:
        """Return the posterior on a device, its bases in a number format; the curvature stays in its format.

        With ``by_block``, the bases are on the devices of the blocks' Jacobians.
        """
        return replace(
            self,
            wide=moved(self.wide, self.blocks, device, dtype, by_block),
            narrow=moved(self.narrow, self.blocks, device, dtype, by_block),
            scale=tuple(t.to(device) for t in self.scale),
            tail=tuple(t.to(device) for t in self.tail),
        )

    @cached_property
    def spectrum(self) -> Spectrum:
        """The eigenvalues, flat: first every ``s_aj`` in block order, then every ``tau_j``."""
        device = self.scale[0].device
        index = torch.arange(len(self.blocks), device=device)
        dropped = [block.wide - len(scale) for block, scale in zip(self.blocks, self.scale, strict=True)]
        count = torch.tensor([1] * len(self.blocks) + dropped, device=device, dtype=torch.float64)
        sizes = torch.tensor([t.numel() for t in (*self.scale, *self.tail)], device=device)
        return Spectrum(
            curvature=torch.cat([t.double().flatten() for t in (*self.scale, *self.tail)]),
            count=count.repeat_interleave(sizes),
            block=index.repeat(2).repeat_interleave(sizes),
        )

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """Return a batch's Jacobians in the eigenbases.

        ``kept`` holds ``u_a^T J_c v_j`` over all blocks, ``rest`` the inner products of what column j's basis
        leaves out.
        """
        kept, rest = [], []
        for wide, narrow, block in zip(self.wide, self.narrow, jacobians.blocks, strict=True):
            coordinates, residual = project(block, wide, narrow)
            kept.append(coordinates.flatten(2).to(jacobians.logits.device))
            rest.append(residual.to(jacobians.logits.device))
        return ProjectedJacobians(jacobians.mean, torch.cat(kept, 2), torch.cat(rest, 3))

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts under the linearised posterior.

        ``V_cc' = sum_blocks [sum_aj z_c,aj z_c',aj / (lambda + s_aj) + sum_j rest_cc',j / (lambda + tau_j)]``
        (Yang et al., arXiv 2308.13111, equation 12, in the eigenbasis).
        """
        kept, rest = projected.kept.double(), projected.rest.double()
        weights = 1 / (precisions[self.spectrum.block] + self.spectrum.curvature)
        covariance = (kept * weights[: kept.shape[2]]) @ kept.mT + rest @ weights[kept.shape[2] :]
        return (covariance + covariance.mT) / 2

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        return self.covariance(self.project(jacobians), precisions)

    def log_determinant_ratio(self, precisions: torch.Tensor) -> torch.Tensor:
        flat = self.spectrum
        return (flat.count * torch.log1p(flat.curvature / precisions[flat.block])).sum()

    def effective_dimension(self, precisions: torch.Tensor) -> torch.Tensor:
        flat = self.spectrum
        gamma = flat.count * flat.curvature / (precisions[flat.block] + flat.curvature)
        return torch.zeros_like(precisions).index_add(0, flat.block, gamma)


def project(jacobian: BlockJacobian, wide: torch.Tensor, narrow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block's Jacobians in the eigenbasis, and the inner products of what the basis leaves out.

    Args:
        wide: (wide, k), the kept basis; narrow: (narrow, narrow).

    Returns:
        coordinates (batch, classes - 1, k, narrow), ``u_a^T J_c v_j``, and rest (batch, classes - 1,
        classes - 1, narrow), ``<R_c v_j, R_c' v_j>`` with ``R = J - U U^T J``; exactly 0 for a full basis.
    """
    rotated = jacobian.jacobian @ narrow.to(jacobian.jacobian)
    basis = wide.to(rotated)
    coordinates = torch.einsum("dk,ncdj->nckj", basis, rotated)
    # The residual first: the difference of the two squares would cancel where the basis holds nearly all.
    residual = rotated - torch.einsum("dk,nckj->ncdj", basis, coordinates)
    rest = torch.einsum("ncdj,nedj->ncej", residual, residual)
    return coordinates, torch.zeros_like(rest) if wide.shape[0] == wide.shape[1] else rest
