"""Fitting the block-diagonal posteriors: Kronecker factors, their eigenbases, and the curvature measured in them.

The first pass sums, per block, both factors of KFAC-reduce (Eschenhagen et al., arXiv 2311.00636, section 3). With
``xbar_n`` row n's input averaged over its tokens and ``gbar_nc`` the output gradient of contrast c summed over them,
the block's curvature is nearly ``A x G``,

    ``A = 1/N sum_n xbar_n xbar_n^T``,   ``G = sum_n sum_cc' Lambda_n,cc' gbar_nc gbar_nc'^T``.

The narrow factor is kept whole, the wide one as a sketch. The second pass measures the GGN's diagonal in the Kronecker
eigenbasis (EKFAC, George et al., arXiv 1806.03884), with an isotropic tail for what the basis leaves out, so that every
block keeps the exact GGN's trace. ``kfac_reduce`` stops after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from laplora.errors import FactorizationError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.posterior.eigen import EigenPosterior, project
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature
from laplora.posterior.sketch import Basis, BlockSums, empty_block_sums, nystrom_eigen, sketch_matrix, stored_basis


@dataclass(frozen=True)
class KroneckerSums(BlockSums):
    """Sums over rows of both Kronecker factors, without their ``1/N``.

    Attributes:
        wide_trace: (blocks,) float64, the wide factor's trace.
    """

    wide_trace: torch.Tensor


@dataclass(frozen=True)
class KroneckerBasis(Basis):
    """Eigenvectors of one block's factors.

    Attributes:
        wide_eigenvalues: (k,) float64, descending.
        narrow_eigenvalues: (narrow,) float64, descending.
        wide_rest: mean eigenvalue of the wide factor over the dropped directions; 0 when there are none.
    """

    wide_eigenvalues: torch.Tensor
    narrow_eigenvalues: torch.Tensor
    wide_rest: float


@dataclass(frozen=True)
class EigenSums:
    """Sums over rows of the GGN's diagonal in the Kronecker eigenbasis.

    Attributes:
        rows: number of examples summed.
        scale: per block (k, narrow) float64, ``sum_n sum_cc' Lambda_cc' (u_a^T J_nc v_j)(u_a^T J_nc' v_j)``.
        rest: per block (narrow,) float64, the same summed over every direction orthogonal to the kept ``u_a``.
    """

    rows: int
    scale: tuple[torch.Tensor, ...]
    rest: tuple[torch.Tensor, ...]


def fit_ekfac(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> EigenPosterior:
    """Return the posterior with the GGN's diagonal in the Kronecker eigenbases; passes ``factors`` and ``scales``."""
    bases, _ = _fit_factors(settings, blocks, run_pass)
    empty = EigenSums(
        rows=0,
        scale=tuple(torch.zeros(b.wide.shape[1], len(b.narrow), dtype=torch.float64) for b in bases),
        rest=tuple(torch.zeros(len(b.narrow), dtype=torch.float64) for b in bases),
    )
    sums = run_pass("scales", empty, partial(_add_eigen_batch, bases=bases))
    # Sums of squares; below zero is rounding.
    scale = tuple(s.clamp_min(0) for s in sums.scale)
    dropped = [max(block.wide - len(s), 1) for block, s in zip(blocks, scale, strict=True)]
    tail = tuple(rest.clamp_min(0) / count for rest, count in zip(sums.rest, dropped, strict=True))
    return _posterior(blocks, bases, scale, tail, sums.rows, "ekfac")


def fit_kfac_reduce(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> EigenPosterior:
    """Return the posterior whose curvature is the Kronecker product, its trace kept; one pass, ``factors``."""
    bases, rows = _fit_factors(settings, blocks, run_pass)
    scale = tuple(torch.outer(b.wide_eigenvalues, b.narrow_eigenvalues) for b in bases)
    tail = tuple(b.wide_rest * b.narrow_eigenvalues for b in bases)
    return _posterior(blocks, bases, scale, tail, rows, "kfac_reduce")


def _fit_factors(
    settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass
) -> tuple[tuple[KroneckerBasis, ...], int]:
    empty = empty_block_sums(blocks, settings.rank + settings.oversampling, settings.seed)
    traces = torch.zeros(len(blocks), dtype=torch.float64)
    sums = run_pass("factors", KroneckerSums(**vars(empty), wide_trace=traces), _add_batch)
    return tuple(stored_basis(b, settings.basis_dtype) for b in _bases(sums, settings.rank)), sums.rows


def _add_batch(sums: KroneckerSums, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> KroneckerSums:
    """Return the sums with one batch added.

    Raises:
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
        FactorizationError: Jacobians without their sums over tokens.
    """
    hessian = jacobians.curvature(class_mask)
    wide, narrow, traces = [], [], []
    for i, (block, jacobian) in enumerate(zip(sums.blocks, jacobians.blocks, strict=True)):
        inputs, gradients = _sums_over_tokens(jacobian)
        test = sketch_matrix(block, sums.wide[i].shape[1], sums.seed).to(gradients.device)
        weighted = hessian.to(gradients.device) @ gradients
        if block.group != "lora_B":
            wide.append(sums.wide[i] + (inputs.T @ (inputs @ test)).cpu())
            narrow.append(sums.narrow[i] + torch.einsum("nci,ncj->ij", weighted, gradients).cpu())
            traces.append(inputs.square().sum().cpu())
        else:
            flat = gradients.flatten(0, 1)
            wide.append(sums.wide[i] + (weighted.flatten(0, 1).T @ (flat @ test)).cpu())
            narrow.append(sums.narrow[i] + (inputs.T @ inputs).cpu())
            traces.append((weighted * gradients).sum().cpu())
        check_curvature(block.name, wide[-1], narrow[-1])
    return replace(
        sums,
        rows=sums.rows + len(hessian),
        wide=tuple(wide),
        narrow=tuple(narrow),
        wide_trace=sums.wide_trace + torch.stack(traces),
    )


def _sums_over_tokens(jacobian: BlockJacobian) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean inputs (batch, in) and summed gradients (batch, classes - 1, out), float64."""
    if jacobian.mean_input is None or jacobian.summed_gradient is None:
        raise FactorizationError("Kronecker factors need Jacobians with their sums over tokens")
    return jacobian.mean_input.double(), jacobian.summed_gradient.double()


def _bases(sums: KroneckerSums, rank: int) -> tuple[KroneckerBasis, ...]:
    """Return each block's eigenbases: all of the narrow side, the leading ``rank`` of the wide side.

    The ``1/N`` is put on the wide side's eigenvalues, for only products of the two matter.

    Raises:
        FactorizationError: no rows, or a factor that stays indefinite.
    """
    check_any_rows(sums)
    bases = []
    for i, (block, wide, narrow) in enumerate(zip(sums.blocks, sums.wide, sums.narrow, strict=True)):
        test = sketch_matrix(block, wide.shape[1], sums.seed)
        values, vectors = nystrom_eigen(wide / sums.rows, test, min(rank, block.wide), block.name)
        narrow_values, narrow_vectors = torch.linalg.eigh((narrow + narrow.T) / 2)
        dropped = block.wide - len(values)
        rest = max(float(sums.wide_trace[i]) / sums.rows - float(values.sum()), 0.0) / dropped if dropped else 0.0
        bases.append(KroneckerBasis(vectors, narrow_vectors.flip(1), values, narrow_values.flip(0).clamp_min(0), rest))
    return tuple(bases)


def _add_eigen_batch(
    sums: EigenSums, jacobians: ContrastJacobians, class_mask: torch.Tensor, bases: Sequence[Basis]
) -> EigenSums:
    hessian = jacobians.curvature(class_mask)
    scale, rest = [], []
    for i, (basis, jacobian) in enumerate(zip(bases, jacobians.blocks, strict=True)):
        where = jacobian.jacobian.device
        coordinates, residual = project(jacobian, basis.wide.to(where), basis.narrow.to(where))
        coordinates, row_hessian = coordinates.double(), hessian.to(where)
        weighted = torch.einsum("nce,nekj->nckj", row_hessian, coordinates)
        scale.append(sums.scale[i] + (weighted * coordinates).sum((0, 1)).cpu())
        rest.append(sums.rest[i] + torch.einsum("nce,ncej->j", row_hessian, residual.double()).cpu())
    return EigenSums(sums.rows + len(hessian), tuple(scale), tuple(rest))


def _posterior(
    blocks: Sequence[Block],
    bases: Sequence[Basis],
    scale: tuple[torch.Tensor, ...],
    tail: tuple[torch.Tensor, ...],
    rows: int,
    structure: str,
) -> EigenPosterior:
    wide, narrow = tuple(b.wide for b in bases), tuple(b.narrow for b in bases)
    return EigenPosterior(tuple(blocks), wide, narrow, scale, tail, rows, structure)
