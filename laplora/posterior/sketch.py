"""Symmetric matrices of low rank from sketches, and orthonormal bases of a block.

A positive semi-definite matrix H is seen as ``Y = H Omega`` with a Gaussian test matrix Omega, a sum over the training
rows. Its eigenvectors follow by the fixed-rank Nystrom approximation with a shift for stability (Tropp et al., arXiv
1706.05736, algorithm 3).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from laplora.errors import FactorizationError, warn
from laplora.jacobians.blocks import Block

#: How often the shift is tried, each time 100 times as large.
_SHIFTS = 5


@dataclass(frozen=True)
class BlockSums:
    """Sums over rows of a matrix on both sides of every block.

    Attributes:
        blocks: which blocks, in order.
        rows: number of examples summed.
        wide: per block (wide, sketch) float64, the wide matrix times ``sketch_matrix``.
        narrow: per block (narrow, narrow) float64.
        seed: of the sketch matrices.
    """

    blocks: tuple[Block, ...]
    rows: int
    wide: tuple[torch.Tensor, ...]
    narrow: tuple[torch.Tensor, ...]
    seed: int


def empty_block_sums(blocks: Sequence[Block], columns: int, seed: int) -> BlockSums:
    """Return the sums over no rows; ``columns`` of a sketch are cut to the block's width."""
    return BlockSums(
        blocks=tuple(blocks),
        rows=0,
        wide=tuple(torch.zeros(b.wide, min(columns, b.wide), dtype=torch.float64) for b in blocks),
        narrow=tuple(torch.zeros(b.narrow, b.narrow, dtype=torch.float64) for b in blocks),
        seed=seed,
    )


@dataclass(frozen=True)
class Basis:
    """Orthonormal bases of one block, float64.

    Attributes:
        wide: (wide, k), the kept directions U of the wide side.
        narrow: (narrow, narrow), V.
    """

    wide: torch.Tensor
    narrow: torch.Tensor


AnyBasis = TypeVar("AnyBasis", bound=Basis)


def stored_basis(basis: AnyBasis, dtype: torch.dtype) -> AnyBasis:
    """Return the basis that a reader gets back when it is stored in ``dtype``.

    It is rounded before the pass that measures curvature in it: the pass and the server use the same directions.
    """
    return replace(basis, wide=orthonormalize(basis.wide.to(dtype)), narrow=orthonormalize(basis.narrow.to(dtype)))


def orthonormalize(vectors: torch.Tensor) -> torch.Tensor:
    """Return float64 orthonormal columns closest in sign and order to nearly orthonormal ones (QR)."""
    q, r = torch.linalg.qr(vectors.double())
    signed: torch.Tensor = q * r.diagonal().sign()
    return signed


def sketch_matrix(block: Block, columns: int, seed: int) -> torch.Tensor:
    """Return the block's Gaussian test matrix, (wide, min(columns, wide)) float64; identity if it fits whole.

    It depends on the block's name and the seed only, so every pass draws the same.
    """
    if columns >= block.wide:
        return torch.eye(block.wide, dtype=torch.float64)
    generator = torch.Generator().manual_seed(zlib.crc32(block.name.encode()) ^ seed)
    return torch.randn(block.wide, columns, dtype=torch.float64, generator=generator)


def nystrom_eigen(sketch: torch.Tensor, test: torch.Tensor, rank: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the leading eigenvalues (rank,), descending, and eigenvectors (d, rank), of a matrix by its sketch.

    Args:
        sketch: (d, m) float64, the matrix times ``test``; test: (d, m) float64.
        rank: how many pairs to keep, at most m; name: of the matrix, for messages.

    Raises:
        FactorizationError: still not positive definite after all shifts.
    """
    if not sketch.any():  # a block that no row reaches: any basis serves, with curvature 0
        return sketch.new_zeros(rank), torch.eye(sketch.shape[0], rank, dtype=sketch.dtype)
    (half,), shift = _halves([sketch], lambda _: test, name)
    vectors, singular, _ = torch.linalg.svd(half.T, full_matrices=False)
    return (singular[:rank] ** 2 - shift).clamp_min(0), vectors[:, :rank]


def nystrom_factor(
    sketch: Sequence[torch.Tensor], test: Callable[[int], torch.Tensor], rank: int, name: str
) -> tuple[torch.Tensor, ...]:
    """Return per part (min(rank, m), d_i) float64 F, with ``F^T F`` the best approximation that a sketch knows.

    Rows are by descending eigenvalue. Only matrices of the sketch's number of columns m are factorised.

    Args:
        sketch: per part (d_i, m) float64, its rows of the matrix times the test matrix.
        test: returns a part's rows of the test matrix, (d_i, m) float64, by its number.
        name: of the matrix, for messages.

    Raises:
        FactorizationError: still not positive definite after all shifts.
    """
    rank = min(rank, sketch[0].shape[1])
    if not any(part.any() for part in sketch):
        return tuple(part.new_zeros(rank, part.shape[0]) for part in sketch)
    halves, shift = _halves(sketch, test, name)
    squares, rotation = torch.linalg.eigh(sum((h @ h.T for h in halves), torch.zeros(())))
    squares, rotation = squares.flip(0)[:rank], rotation.flip(1)[:, :rank]
    unshift = ((squares - shift).clamp_min(0) / squares.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    return tuple(unshift[:, None] * (rotation.T @ h) for h in halves)


def _halves(
    sketch: Sequence[torch.Tensor], test: Callable[[int], torch.Tensor], name: str
) -> tuple[list[torch.Tensor], float]:
    """Return per part (m, d_i) the halves B of ``H + shift I ~ B^T B``, and the shift."""
    columns = sketch[0].shape[1]
    core, gram = torch.zeros(2, columns, columns, dtype=torch.float64)
    for i, part in enumerate(sketch):
        part_test = test(i)
        core, gram = core + part_test.T @ part, gram + part_test.T @ part_test
    size = math.sqrt(sum(float(part.square().sum()) for part in sketch))
    shift = math.sqrt(sum(part.shape[0] for part in sketch)) * torch.finfo(torch.float64).eps * size
    for attempt in range(_SHIFTS):
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2 + shift * gram)
        if not failed:
            if attempt:
                warn(f"{name}: sketch factorised with a shift of {shift:.1e}")
            halves = [
                torch.linalg.solve_triangular(factor, (part + shift * test(i)).T, upper=False)
                for i, part in enumerate(sketch)
            ]
            return halves, shift
        shift *= 100
    raise FactorizationError(f"{name}: the curvature sketch is not positive semidefinite (last shift {shift:.1e})")
