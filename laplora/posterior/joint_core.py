"""Fitting the default posterior: the leading curvature over all blocks, inside bases of each block's Jacobians.

With ``J_nc`` (wide, narrow) a block's Jacobian of contrast c of row n, and Lambda_n the Hessian in the contrasts:

1. *Bases.* The first pass sums both second moments of every block's Jacobians,

       ``W = sum_n sum_cc' Lambda_n,cc' J_nc J_nc'^T``,   ``M = sum_n sum_cc' Lambda_n,cc' J_nc^T J_nc'``,

   the factors of Shampoo (Gupta, Koren and Singer, arXiv 1802.09568; Vyas et al., arXiv 2409.11321). U is the leading
   eigenvectors of W, V all of those of M. The eigenvalue of W at u is the part of the GGN's trace in the directions
   ``u v^T``, so the ranks are shared out by eigenvalue over all blocks together (De Lathauwer et al. 2000).
2. *Core.* With ``z_n`` the coordinates ``U^T J_n V`` of all blocks in one vector, the second pass sketches the GGN
   ``sum_n z_n^T Lambda_n z_n`` between all blocks, and keeps its ``joint_rank`` leading directions F.

``laplora.posterior.joint`` has the covariance that follows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import at_least_float32
from laplora.posterior.joint import JointPosterior, build_joint_posterior
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature
from laplora.posterior.sketch import (
    Basis,
    BlockSums,
    empty_block_sums,
    nystrom_eigen,
    nystrom_factor,
    sketch_matrix,
    stored_basis,
)

#: A block keeps at most so many times the mean rank.
LARGEST_SHARE = 4


@dataclass(frozen=True)
class JointSketch:
    """The GGN over all blocks times a Gaussian test matrix.

    Attributes:
        blocks: which blocks, in order.
        rows: number of examples summed.
        sketch: per block (coordinates, columns) float64, the block's rows of ``H Omega``.
        seed: of the test matrix.
    """

    blocks: tuple[Block, ...]
    rows: int
    sketch: tuple[torch.Tensor, ...]
    seed: int


def fit_joint_core(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> JointPosterior:
    """Return the ``joint_core`` posterior; two passes, ``moments`` and ``core``."""
    bases = tuple(stored_basis(b, settings.basis_dtype) for b in _fit_bases(settings, blocks, run_pass))
    factor, rows = fit_sketch(settings, blocks, run_pass, bases)
    return build_joint_posterior(
        blocks,
        factor,
        rows=rows,
        direction_dtype=settings.basis_dtype,
        wide=[b.wide for b in bases],
        narrow=[b.narrow for b in bases],
    )


def _fit_bases(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> tuple[Basis, ...]:
    """Return the bases; the moments, several times as large, are freed before the next pass."""
    empty = empty_block_sums(blocks, LARGEST_SHARE * settings.rank + settings.oversampling, settings.seed)
    return moment_bases(run_pass("moments", empty, add_moment_batch), settings.rank)


def fit_sketch(
    settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass, bases: tuple[Basis, ...]
) -> tuple[tuple[torch.Tensor, ...], int]:
    """Return F by block, (joint_rank, coordinates), whose ``F^T F`` is the leading curvature, and the rows summed.

    One pass, ``core``.
    """
    # At least twice the rank, for the spectrum over all blocks falls slowly: at rank 10 of 60 rows that holds 0.9 of
    # the best trace, at rank 40 0.99.
    columns = settings.joint_rank + max(settings.joint_rank, settings.oversampling)
    sizes = [b.wide.shape[1] * b.narrow.shape[1] for b in bases]
    columns = min(columns, sum(sizes))
    zeros = tuple(torch.zeros(size, columns, dtype=torch.float64) for size in sizes)
    empty = JointSketch(blocks, 0, zeros, settings.seed)
    state = run_pass("core", empty, partial(_add_sketch_batch, bases=bases))
    check_any_rows(state)
    tests = partial(joint_test_matrix, state)
    return nystrom_factor(state.sketch, tests, settings.joint_rank, "all blocks together"), state.rows


def add_moment_batch(sums: BlockSums, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> BlockSums:
    """Return the moments with one batch added; in float64: in less, a moment of low rank comes out indefinite.

    Raises:
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
    """
    hessian = jacobians.curvature(class_mask)
    wide, narrow = [], []
    for i, (block, part) in enumerate(zip(sums.blocks, jacobians.blocks, strict=True)):
        jacobian = part.jacobian.double()
        weighted = torch.einsum("nce,newk->ncwk", hessian.to(jacobian.device), jacobian)
        seen = jacobian.mT @ sketch_matrix(block, sums.wide[i].shape[1], sums.seed).to(jacobian.device)
        wide.append(sums.wide[i] + _over_rows(weighted.mT, seen))
        narrow.append(sums.narrow[i] + _over_rows(weighted, jacobian))
        check_curvature(block.name, wide[-1], narrow[-1])
    return replace(sums, rows=sums.rows + len(hessian), wide=tuple(wide), narrow=tuple(narrow))


def _over_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return ``sum_nc left_nc^T right_nc`` of (batch, contrasts, m, a) and (batch, contrasts, m, b), on the CPU."""
    return (left.flatten(0, 2).T @ right.flatten(0, 2)).cpu()


def moment_bases(sums: BlockSums, rank: int) -> tuple[Basis, ...]:
    """Return each block's bases: all of the narrow side, and of the wide side what is worth most among all blocks.

    Args:
        rank: mean number of wide eigenvectors over the blocks; one has 1 to ``LARGEST_SHARE`` times as many.

    Raises:
        FactorizationError: no rows, or a moment that stays indefinite.
    """
    check_any_rows(sums)
    pairs = []
    for block, wide in zip(sums.blocks, sums.wide, strict=True):
        test = sketch_matrix(block, wide.shape[1], sums.seed)
        pairs.append(nystrom_eigen(wide, test, min(LARGEST_SHARE * rank, wide.shape[1]), block.name))
    counts = shared_ranks([values for values, _ in pairs], sum(min(rank, b.wide) for b in sums.blocks))
    return tuple(
        Basis(vectors[:, :count], torch.linalg.eigh((narrow + narrow.T) / 2).eigenvectors.flip(1))
        for (_, vectors), count, narrow in zip(pairs, counts, sums.narrow, strict=True)
    )


def shared_ranks(eigenvalues: Sequence[torch.Tensor], total: int) -> list[int]:
    """Return how many leading eigenvalues of each block are among the ``total`` largest of all, and at least one.

    Args:
        eigenvalues: per block, descending, at least one.
    """
    counts = [1] * len(eigenvalues)
    rest = [(-float(v), i) for i, values in enumerate(eigenvalues) for v in values[1:]]
    for _, i in sorted(rest)[: max(total - len(counts), 0)]:
        counts[i] += 1
    return counts


def _add_sketch_batch(
    state: JointSketch, jacobians: ContrastJacobians, class_mask: torch.Tensor, bases: Sequence[Basis]
) -> JointSketch:
    """Return the sketch with one batch added; products and sums in float64, so batching does not matter."""
    hessian = jacobians.curvature(class_mask)
    coordinates = []
    for basis, block in zip(bases, jacobians.blocks, strict=True):
        jacobian = at_least_float32(block.jacobian)
        coordinates.append((basis.wide.to(jacobian).mT @ (jacobian @ basis.narrow.to(jacobian))).flatten(2))
    seen = torch.zeros((), dtype=torch.float64, device=hessian.device)
    for i, part in enumerate(coordinates):
        seen = seen + (part.double() @ joint_test_matrix(state, i).to(part.device)).to(hessian.device)
    check_curvature("all blocks together", seen, hessian)
    weighted = (hessian @ seen).flatten(0, 1)
    sketch = tuple(
        before + (part.flatten(0, 1).double().T @ weighted.to(part.device)).cpu()
        for before, part in zip(state.sketch, coordinates, strict=True)
    )
    return replace(state, rows=state.rows + len(hessian), sketch=sketch)


def joint_test_matrix(state: JointSketch, index: int) -> torch.Tensor:
    """Return a block's rows of the Gaussian test matrix, (coordinates, columns) float64.

    Drawn when needed and never stored, from the block's name and the seed alone; where the columns are as many as all
    blocks' coordinates, it is the identity.
    """
    size, columns = state.sketch[index].shape
    if columns == sum(s.shape[0] for s in state.sketch):
        start = sum(s.shape[0] for s in state.sketch[:index])
        return torch.eye(columns, dtype=torch.float64)[start : start + size]
    seed = zlib.crc32(f"{state.blocks[index].name}.joint".encode()) ^ state.seed
    # float32 numbers: twice as fast to draw, and as good a test matrix.
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(seed)).double()
