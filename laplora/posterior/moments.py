"""Bases from the Jacobians' own second moments, their rank shared out between all blocks.

KFAC's factors are made of inputs and output gradients that are averaged over tokens; what the Jacobians of a block
span is another matter. Per block, with J_nc (wide, narrow) and Lambda_n the Hessian in the contrasts,

    ``W = sum_n sum_cc' Lambda_cc' J_nc J_nc'^T``,   ``M = sum_n sum_cc' Lambda_cc' J_nc^T J_nc'``

are the second moments of the GGN's two sides, the factors of Shampoo (Gupta, Koren and Singer, arXiv 1802.09568;
Vyas et al., arXiv 2409.11321, keep a diagonal in their eigenbases). The eigenvalue of W at u is the part of the block's
GGN trace that lies in the directions ``u v^T``, so the leading eigenvectors of all blocks' W, taken together by
eigenvalue, keep the most trace that so many vectors can keep (De Lathauwer et al. 2000, one mode at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from laplora.errors import FactorizationError
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.linearised import contrast_hessian
from laplora.posterior.curvature import KroneckerBasis, check_finite, nystrom_eigen, sketch_matrix

#: A block keeps at most so many times the mean rank.
LARGEST_SHARE = 4


@dataclass(frozen=True)
class MomentSums:
    """Sums over rows of both second moments; two of them add up.

    Attributes:
        blocks: which blocks, in order.
        rows: number of examples summed.
        wide: per block (wide, sketch) float64, W times ``sketch_matrix``.
        narrow: per block (narrow, narrow) float64, M.
        seed: of the sketch matrices.
    """

    blocks: tuple[Block, ...]
    rows: int
    wide: tuple[torch.Tensor, ...]
    narrow: tuple[torch.Tensor, ...]
    seed: int


def empty_moments(blocks: Sequence[Block], *, rank: int, oversampling: int, seed: int) -> MomentSums:
    """Return the sums over no rows.

    Args:
        rank: the mean of the ranks that ``moment_bases`` will be asked for.
        oversampling: columns of the sketch beyond the largest rank that one block can have.
    """
    columns = LARGEST_SHARE * rank + oversampling
    return MomentSums(
        blocks=tuple(blocks),
        rows=0,
        wide=tuple(torch.zeros(b.wide, min(columns, b.wide), dtype=torch.float64) for b in blocks),
        narrow=tuple(torch.zeros(b.narrow, b.narrow, dtype=torch.float64) for b in blocks),
        seed=seed,
    )


def add_moment_batch(sums: MomentSums, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> MomentSums:
    """Return the sums with one batch added; products in float64: in less, a moment of low rank comes out indefinite.

    Raises:
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
    """
    hessian = contrast_hessian(jacobians.logits, class_mask)
    wide, narrow = [], []
    for i, (block, part) in enumerate(zip(sums.blocks, jacobians.blocks, strict=True)):
        own = part.jacobian.double()
        weighted = torch.einsum("nce,newk->ncwk", hessian, own)
        seen = own.mT @ sketch_matrix(block, sums.wide[i].shape[1], sums.seed).to(own.device)
        wide.append(sums.wide[i] + _over_rows(weighted.mT, seen))
        narrow.append(sums.narrow[i] + _over_rows(weighted, own))
        check_finite(block, wide[-1], narrow[-1])
    return replace(sums, rows=sums.rows + len(hessian), wide=tuple(wide), narrow=tuple(narrow))


def _over_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return ``sum_nc left_nc^T right_nc`` of (batch, contrasts, m, a) and (batch, contrasts, m, b), on the CPU."""
    return (left.flatten(0, 2).T @ right.flatten(0, 2)).cpu()


def merge_moments(first: MomentSums, second: MomentSums) -> MomentSums:
    """Return the sums over the rows of both, for example of two workers.

    Raises:
        FactorizationError: sums of other blocks, sketches or seeds.
    """
    same = [w.shape for w in first.wide] == [w.shape for w in second.wide]
    if first.blocks != second.blocks or first.seed != second.seed or not same:
        raise FactorizationError("second moments merge only with the same blocks, sketch size and seed")
    return replace(
        first,
        rows=first.rows + second.rows,
        wide=tuple(a + b for a, b in zip(first.wide, second.wide, strict=True)),
        narrow=tuple(a + b for a, b in zip(first.narrow, second.narrow, strict=True)),
    )


def moment_bases(sums: MomentSums, rank: int) -> tuple[KroneckerBasis, ...]:
    """Return each block's bases: all of the narrow side, and of the wide side what is worth most among all blocks.

    Args:
        rank: mean number of wide eigenvectors over the blocks; one has 1 to ``LARGEST_SHARE`` times as many.

    Raises:
        FactorizationError: no rows, or a moment that stays indefinite.
    """
    if sums.rows == 0:
        raise FactorizationError("no rows were summed: the curvature of nothing has no basis")
    found = []
    for block, wide in zip(sums.blocks, sums.wide, strict=True):
        test = sketch_matrix(block, wide.shape[1], sums.seed)
        found.append(nystrom_eigen(wide, test, min(LARGEST_SHARE * rank, wide.shape[1]), block.name))
    counts = shared_ranks([values for values, _ in found], sum(min(rank, b.wide) for b in sums.blocks))
    bases = []
    for (values, vectors), count, narrow in zip(found, counts, sums.narrow, strict=True):
        narrow_values, narrow_vectors = torch.linalg.eigh((narrow + narrow.T) / 2)
        bases.append(
            KroneckerBasis(
                vectors[:, :count], values[:count], narrow_vectors.flip(1), narrow_values.flip(0).clamp_min(0)
            )
        )
    return tuple(bases)


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
