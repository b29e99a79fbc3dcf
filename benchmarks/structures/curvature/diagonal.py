"""The posterior with the GGN's diagonal: one curvature per parameter, no covariance between any two.

``V_cc' = sum_p J_cp J_c'p / (lambda + h_p)`` with ``h_p = sum_n sum_cc' Lambda_cc' J_ncp J_nc'p``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature


@dataclass(frozen=True)
class DiagonalPosterior:
    """Curvature of every parameter by itself: per block (wide, narrow), ``h_p`` summed over the training rows."""

    blocks: tuple[Block, ...]
    diagonal: tuple[torch.Tensor, ...]
    rows: int

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
