"""The posterior with the GGN's diagonal: one curvature per parameter, no covariance between any two.

``V_cc' = sum_p J_cp J_c'p / (lambda + h_p)`` with ``h_p = sum_n sum_cc' Lambda_cc' J_ncp J_nc'p``: ``covariance_of``.
For choosing a prior, ``project`` sorts the parameters of each block into levels of like curvature and keeps a batch's
inner products per level, so that what is kept of a row does not grow with the number of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.linearised import contrast_mean
from laplora.posterior.base import BlockDevices, ProjectedJacobians
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature

#: Levels per factor of ten in curvature. Parameters of one level get the weight of its mean curvature, so a single
#: one's share of the variance is off by a level's width, 47 %, at most, and that of a level whose squared Jacobians go
#: with the curvature by 0.3 %.
LEVELS_PER_DECADE = 6
#: Curvature below the block's largest by more than this many factors of ten is one level.
DECADES = 10


@dataclass(frozen=True)
class Levels:
    """Parameters of like curvature.

    Attributes:
        member: per block (wide * narrow,) int64, the level of each parameter, counted over all blocks.
        mean: (levels,) float64, the mean curvature of a level; block: (levels,) int64, the block it belongs to.
    """

    member: tuple[torch.Tensor, ...]
    mean: torch.Tensor
    block: torch.Tensor


@dataclass(frozen=True)
class DiagonalPosterior:
    """Curvature of every parameter by itself: per block (wide, narrow), ``h_p`` summed over the training rows."""

    blocks: tuple[Block, ...]
    diagonal: tuple[torch.Tensor, ...]
    rows: int
    structure: str = "diagonal"

    def to(
        self, device: torch.device | str, dtype: torch.dtype, by_block: BlockDevices | None = None
    ) -> DiagonalPosterior:
        """Return the posterior on a device; nothing here multiplies Jacobians, so all keeps its number format."""
        return replace(self, diagonal=tuple(t.to(device) for t in self.diagonal))

    @cached_property
    def levels(self) -> Levels:
        """Each block's parameters sorted by curvature into ``LEVELS_PER_DECADE`` levels, empty ones left out."""
        members, means, blocks, start = [], [], [], 0
        for i, diagonal in enumerate(self.diagonal):
            curvature = diagonal.double().flatten().cpu()  # one processor's logarithm, whatever the device
            depth = (curvature / curvature.max().clamp_min(torch.finfo(torch.float64).tiny)).log10().neg()
            level = (depth * LEVELS_PER_DECADE).floor().clamp(0, DECADES * LEVELS_PER_DECADE).long()
            _, member = torch.unique(level, return_inverse=True)  # type: ignore[no-untyped-call]
            count = int(member.max()) + 1
            zeros = torch.zeros(count, dtype=torch.float64)
            sizes = zeros.index_add(0, member, torch.ones_like(curvature))
            means.append(zeros.index_add(0, member, curvature) / sizes)
            members.append((member + start).to(diagonal.device))
            blocks.append(torch.full((count,), i))
            start += count
        device = self.diagonal[0].device
        return Levels(tuple(members), torch.cat(means).to(device), torch.cat(blocks).to(device))

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """Return a batch's inner products ``sum_p J_cp J_c'p`` by level in ``rest``; ``kept`` has no directions."""
        logits = jacobians.logits
        batch, contrasts = logits.shape[0], logits.shape[1] - 1
        levels = self.levels
        dtype = torch.promote_types(jacobians.blocks[0].jacobian.dtype, torch.float32)
        rest = logits.new_zeros(batch, contrasts, contrasts, len(levels.mean), dtype=dtype)
        for member, part in zip(levels.member, jacobians.blocks, strict=True):
            flat = part.jacobian.flatten(2).to(rest)
            for c in range(contrasts):
                rest[:, c, : c + 1].index_add_(2, member, flat[:, c : c + 1] * flat[:, : c + 1])
        upper = torch.triu_indices(contrasts, contrasts, 1, device=rest.device)
        rest[:, upper[0], upper[1]] = rest[:, upper[1], upper[0]]
        return ProjectedJacobians(contrast_mean(logits), rest.new_zeros(batch, contrasts, 0), rest)

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts, each level at its mean curvature; as ``Posterior.covariance``."""
        return projected.rest.double() @ (1 / (precisions[self.levels.block] + self.levels.mean))

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts, each parameter at its curvature; as ``Posterior.covariance_of``."""
        batch, contrasts = jacobians.logits.shape[0], jacobians.logits.shape[1] - 1
        covariance = precisions.new_zeros(batch, contrasts, contrasts)
        for precision, diagonal, part in zip(precisions, self.diagonal, jacobians.blocks, strict=True):
            flat = part.jacobian.flatten(2)
            flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
            scaled = flat * (precision + diagonal.double()).rsqrt().flatten().to(flat)
            covariance = covariance + (scaled @ scaled.mT).double()
        return (covariance + covariance.mT) / 2


def fit_diagonal(_settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> DiagonalPosterior:
    """Return the posterior with the GGN's diagonal, rounded to float32; one pass, ``diagonal``.

    Raises:
        FactorizationError: no rows.
    """
    sums = run_pass("diagonal", no_rows(blocks), add_diagonal_batch)
    check_any_rows(sums)
    return replace(sums, diagonal=tuple(d.clamp_min(0).float().double() for d in sums.diagonal))


def no_rows(blocks: Sequence[Block]) -> DiagonalPosterior:
    """Return the posterior of no rows."""
    zeros = tuple(torch.zeros(b.wide, b.narrow, dtype=torch.float64) for b in blocks)
    return DiagonalPosterior(tuple(blocks), zeros, 0)


def add_diagonal_batch(
    sums: DiagonalPosterior, jacobians: ContrastJacobians, class_mask: torch.Tensor
) -> DiagonalPosterior:
    """Return the sums with one batch added; NonFiniteError for a Jacobian or logit that is NaN or infinite."""
    hessian = jacobians.curvature(class_mask)
    diagonal = []
    for block, before, part in zip(sums.blocks, sums.diagonal, jacobians.blocks, strict=True):
        jacobian = part.jacobian.double()
        weighted = torch.einsum("nce,nedj->ncdj", hessian, jacobian)
        diagonal.append(before + (weighted * jacobian).sum((0, 1)).cpu())
        check_curvature(block.name, diagonal[-1])
    return replace(sums, rows=sums.rows + len(hessian), diagonal=tuple(diagonal))
