"""Curvature of the training loss at the adapter: Kronecker bases and EKFAC scales, as sums.

The generalised Gauss-Newton matrix (GGN) is ``H = sum_n J_n^T Lambda_n J_n`` with
``Lambda_n = Q^T (diag p - p p^T) Q``, exact over the classes, no sampled labels.

Two passes over the training rows. The first accumulates, per block, the two Kronecker factors of a kind of
KFAC: the small one whole, the wide one as a sketch that is a plain sum, so neither the order nor the batching
of rows matters and partial sums from several workers add up. The second measures the diagonal of the GGN in the
Kronecker eigenbasis (EKFAC, George et al., arXiv 1806.03884) from the true all-token Jacobians, with an isotropic
tail for what the basis leaves out, so that the trace of every block equals the exact GGN's trace.

Kinds of factors (Eschenhagen et al., arXiv 2311.00636, section 3). With ``x_nt`` the input and ``g_nct`` the
output gradient of contrast c at token t of row n, N rows and T_n real tokens in row n, the block's curvature is
``A x G`` with

- ``reduce``: ``A = 1/N sum_n xbar_n xbar_n^T``, ``G = sum_n sum_cc' Lambda_cc' gbar_nc gbar_nc'^T``, ``xbar`` the
  mean over the row's tokens and ``gbar`` the sum over them;
- ``expand``: ``A = 1/(sum_n T_n) sum_nt x_nt x_nt^T``, ``G = sum_nt sum_cc' Lambda_cc' g_nct g_nc't^T``: every
  token as a row of its own, which leaves out what two tokens of a row have in common;
- ``last``: both at the last token only, ``A`` with ``1/N``.

All sum over the rows and have the scale of the GGN; with one token in every row the three are the same.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from laplora.errors import FactorizationError, NonFiniteError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.linearised import contrast_hessian

Kind = Literal["reduce", "expand", "last"]


@dataclass(frozen=True)
class KroneckerSums:
    """Sums over rows of both Kronecker factors, without their ``1/N``; two of them add up.

    Attributes:
        blocks: which blocks, in order.
        rows: number of examples summed.
        wide: per block (wide, sketch) float64, the wide factor times ``sketch_matrix``.
        narrow: per block (narrow, narrow) float64.
        wide_trace: (blocks,) float64, the wide factor's trace.
        terms: (blocks,) float64, outer products in the input factor: rows, or real tokens in kind ``expand``.
        seed: of the sketch matrices.
        kind: of the factors.
    """

    blocks: tuple[Block, ...]
    rows: int
    wide: tuple[torch.Tensor, ...]
    narrow: tuple[torch.Tensor, ...]
    wide_trace: torch.Tensor
    terms: torch.Tensor
    seed: int
    kind: Kind = "reduce"


@dataclass(frozen=True)
class KroneckerBasis:
    """Orthonormal bases of one block.

    Attributes:
        wide: (wide, k) float64, leading eigenvectors of the wide factor.
        wide_eigenvalues: (k,) float64, descending.
        narrow: (narrow, narrow) float64, eigenvectors of the small factor.
        narrow_eigenvalues: (narrow,) float64, descending.
        wide_rest: mean eigenvalue of the wide factor over the directions left out; 0 when there are none.
    """

    wide: torch.Tensor
    wide_eigenvalues: torch.Tensor
    narrow: torch.Tensor
    narrow_eigenvalues: torch.Tensor
    wide_rest: float = 0.0


@dataclass(frozen=True)
class EigenSums:
    """Sums over rows of the GGN's diagonal in the Kronecker eigenbasis; two of them add up.

    Attributes:
        rows: number of examples summed.
        scale: per block (k, narrow) float64, ``sum_n sum_cc' Lambda_cc' (u_a^T J_nc v_j)(u_a^T J_nc' v_j)``.
        rest: per block (narrow,) float64, the same summed over every direction orthogonal to the kept ``u_a``.
    """

    rows: int
    scale: tuple[torch.Tensor, ...]
    rest: tuple[torch.Tensor, ...]


def sketch_matrix(block: Block, columns: int, seed: int) -> torch.Tensor:
    """Return the block's Gaussian test matrix, (wide, min(columns, wide)) float64; identity if it fits whole.

    It depends on the block's name and the seed only, so every worker draws the same.
    """
    if columns >= block.wide:
        return torch.eye(block.wide, dtype=torch.float64)
    generator = torch.Generator().manual_seed(zlib.crc32(block.name.encode()) ^ seed)
    return torch.randn(block.wide, columns, dtype=torch.float64, generator=generator)


def empty_sums(blocks: Sequence[Block], *, sketch_columns: int, seed: int, kind: Kind = "reduce") -> KroneckerSums:
    """Return the sums over no rows.

    Args:
        sketch_columns: columns of the wide side's sketch: the rank to keep and an oversampling of about as
            many.
        kind: of the factors; ``expand`` and ``last`` need Jacobians with every token.
    """
    return KroneckerSums(
        blocks=tuple(blocks),
        rows=0,
        wide=tuple(torch.zeros(b.wide, min(sketch_columns, b.wide), dtype=torch.float64) for b in blocks),
        narrow=tuple(torch.zeros(b.narrow, b.narrow, dtype=torch.float64) for b in blocks),
        wide_trace=torch.zeros(len(blocks), dtype=torch.float64),
        terms=torch.zeros(len(blocks), dtype=torch.float64),
        seed=seed,
        kind=kind,
    )


def add_batch(sums: KroneckerSums, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> KroneckerSums:
    """Return the sums with one batch added.

    Raises:
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
        FactorizationError: a kind that needs every token, and Jacobians without them.
    """
    hessian = contrast_hessian(jacobians.logits, class_mask)
    wide, narrow, traces, terms = [], [], [], []
    for i, (block, jacobian) in enumerate(zip(sums.blocks, jacobians.blocks, strict=True)):
        test = sketch_matrix(block, sums.wide[i].shape[1], sums.seed).to(hessian.device)
        inputs, gradients, count = _sides(jacobian, sums.kind)
        weighted = torch.einsum("ncd,nce->nde", hessian, gradients.flatten(2)).reshape(gradients.shape)
        gradients, weighted = gradients.flatten(1, 2), weighted.flatten(1, 2)
        if block.group == "lora_A":
            wide.append(sums.wide[i] + (inputs.T @ (inputs @ test)).cpu())
            narrow.append(sums.narrow[i] + torch.einsum("nci,ncj->ij", weighted, gradients).cpu())
            traces.append(inputs.square().sum())
        else:
            flat = gradients.flatten(0, 1)
            wide.append(sums.wide[i] + (weighted.flatten(0, 1).T @ (flat @ test)).cpu())
            narrow.append(sums.narrow[i] + (inputs.T @ inputs).cpu())
            traces.append((weighted * gradients).sum())
        terms.append(count)
        check_finite(block, wide[-1], narrow[-1])
    return replace(
        sums,
        rows=sums.rows + len(hessian),
        wide=tuple(wide),
        narrow=tuple(narrow),
        wide_trace=sums.wide_trace + torch.stack(traces).cpu(),
        terms=sums.terms + torch.tensor(terms, dtype=torch.float64),
    )


def _sides(jacobian: BlockJacobian, kind: Kind) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return inputs (terms, in), gradients (batch, classes - 1, tokens, out) and the number of terms that count."""
    if kind == "reduce":
        if jacobian.mean_input is None or jacobian.summed_gradient is None:
            raise FactorizationError("factors of kind 'reduce' need Jacobians with their sums")
        inputs = jacobian.mean_input.double()
        return inputs, jacobian.summed_gradient.double()[:, :, None], len(inputs)
    if jacobian.inputs is None or jacobian.gradients is None or jacobian.token_counts is None:
        raise FactorizationError(f"factors of kind {kind!r} need Jacobians with every token, got their sums only")
    if kind == "last":  # rows are padded on the left
        inputs = jacobian.inputs[:, -1].double()
        return inputs, jacobian.gradients[:, :, -1:].double(), len(inputs)
    # Padding is zero on both sides and adds nothing; it is no term either.
    return jacobian.inputs.flatten(0, 1).double(), jacobian.gradients.double(), int(jacobian.token_counts.sum())


def merge_sums(first: KroneckerSums, second: KroneckerSums) -> KroneckerSums:
    """Return the sums over the rows of both, for example of two workers.

    Raises:
        FactorizationError: sums of other blocks, kinds, sketches or seeds.
    """
    if _what(first) != _what(second):
        raise FactorizationError("curvature sums merge only with the same blocks, kind, sketch size and seed")
    return replace(
        first,
        rows=first.rows + second.rows,
        wide=tuple(a + b for a, b in zip(first.wide, second.wide, strict=True)),
        narrow=tuple(a + b for a, b in zip(first.narrow, second.narrow, strict=True)),
        wide_trace=first.wide_trace + second.wide_trace,
        terms=first.terms + second.terms,
    )


def kronecker_bases(sums: KroneckerSums, rank: int) -> tuple[KroneckerBasis, ...]:
    """Return each block's eigenbases: all of the narrow side, the leading ``rank`` of the wide side.

    The block is ``1/N (input factor) x (gradient factor)``; the ``1/N``, one over the terms of the input factor, is
    put on the input factor's eigenvalues.

    Raises:
        FactorizationError: no rows, or a factor that stays indefinite.
    """
    if sums.rows == 0:
        raise FactorizationError("no rows were summed: the curvature of nothing has no basis")
    bases = []
    for i, (block, wide, narrow) in enumerate(zip(sums.blocks, sums.wide, sums.narrow, strict=True)):
        mean = 1 / float(sums.terms[i])
        wide_scale, narrow_scale = (mean, 1.0) if block.group == "lora_A" else (1.0, mean)
        test = sketch_matrix(block, wide.shape[1], sums.seed)
        values, vectors = nystrom_eigen(wide * wide_scale, test, min(rank, block.wide), block.name)
        narrow_values, narrow_vectors = torch.linalg.eigh((narrow + narrow.T) / 2 * narrow_scale)
        left_out = block.wide - len(values)
        rest = max(float(sums.wide_trace[i]) * wide_scale - float(values.sum()), 0.0) / left_out if left_out else 0.0
        bases.append(KroneckerBasis(vectors, values, narrow_vectors.flip(1), narrow_values.flip(0).clamp_min(0), rest))
    return tuple(bases)


def stored_basis(basis: KroneckerBasis, dtype: torch.dtype) -> KroneckerBasis:
    """Return the basis that a reader gets back when it is stored in ``dtype``.

    The second pass and the server must use the same directions, so the rounding happens before the pass; what
    a reader orthonormalises again differs from it by a second rounding only (in bfloat16 1e-4 of the variance).
    """
    return replace(basis, wide=orthonormalize(basis.wide.to(dtype)), narrow=orthonormalize(basis.narrow.to(dtype)))


def orthonormalize(vectors: torch.Tensor) -> torch.Tensor:
    """Return float64 orthonormal columns closest in sign and order to nearly orthonormal ones (QR)."""
    q, r = torch.linalg.qr(vectors.double())
    signed: torch.Tensor = q * r.diagonal().sign()
    return signed


def nystrom_eigen(sketch: torch.Tensor, test: torch.Tensor, rank: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return leading eigenvalues and eigenvectors of a PSD matrix known by its sketch.

    Fixed-rank Nystrom approximation with a shift for stability (Tropp et al., arXiv 1706.05736,
    algorithm 3).

    Args:
        sketch: (d, m) float64, the matrix times ``test``.
        test: (d, m) float64.
        rank: how many pairs to keep, at most m.
        name: of the block, for messages.

    Returns:
        eigenvalues (rank,) descending and orthonormal eigenvectors (d, rank).

    Raises:
        FactorizationError: still not positive definite after five shifts, each 100 times the last.
    """
    size = float(sketch.norm())
    if size == 0:  # a block that no row reaches: any basis serves, with curvature 0
        return sketch.new_zeros(rank), torch.eye(sketch.shape[0], rank, dtype=sketch.dtype)
    shift = (sketch.shape[0] ** 0.5) * torch.finfo(sketch.dtype).eps * size
    for attempt in range(5):
        shifted = sketch + shift * test
        core = test.T @ shifted
        factor, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if not failed:
            if attempt:
                warnings.warn(f"{name}: sketch factorised with a shift of {shift:.1e}", RuntimeWarning, stacklevel=2)
            half = torch.linalg.solve_triangular(factor, shifted.T, upper=False).T
            vectors, singular, _ = torch.linalg.svd(half, full_matrices=False)
            return (singular[:rank] ** 2 - shift).clamp_min(0), vectors[:, :rank]
        shift *= 100
    raise FactorizationError(f"{name}: the curvature sketch is not positive semidefinite (last shift {shift:.1e})")


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


def empty_eigen_sums(bases: Sequence[KroneckerBasis]) -> EigenSums:
    """Return the second pass's sums over no rows."""
    return EigenSums(
        0,
        tuple(torch.zeros(b.wide.shape[1], b.narrow.shape[1], dtype=torch.float64) for b in bases),
        tuple(torch.zeros(b.narrow.shape[1], dtype=torch.float64) for b in bases),
    )


def add_eigen_batch(
    sums: EigenSums, jacobians: ContrastJacobians, bases: Sequence[KroneckerBasis], class_mask: torch.Tensor
) -> EigenSums:
    """Return the second pass's sums with one batch added."""
    hessian = contrast_hessian(jacobians.logits, class_mask)
    scale, rest = [], []
    for i, (basis, jacobian) in enumerate(zip(bases, jacobians.blocks, strict=True)):
        coordinates, left_out = project(jacobian, basis.wide.to(hessian.device), basis.narrow.to(hessian.device))
        coordinates = coordinates.double()
        weighted = torch.einsum("nce,nekj->nckj", hessian, coordinates)
        scale.append(sums.scale[i] + (weighted * coordinates).sum((0, 1)).cpu())
        rest.append(sums.rest[i] + torch.einsum("nce,ncej->j", hessian, left_out.double()).cpu())
    return EigenSums(sums.rows + len(hessian), tuple(scale), tuple(rest))


def merge_eigen_sums(first: EigenSums, second: EigenSums) -> EigenSums:
    """Return the sums over the rows of both; both must have used the same bases."""
    return EigenSums(
        first.rows + second.rows,
        tuple(a + b for a, b in zip(first.scale, second.scale, strict=True)),
        tuple(a + b for a, b in zip(first.rest, second.rest, strict=True)),
    )


def _what(sums: KroneckerSums) -> tuple[object, ...]:
    return sums.blocks, sums.kind, sums.seed, [w.shape for w in sums.wide]


def check_finite(block: Block, *tensors: torch.Tensor) -> None:
    """Raise NonFiniteError, which names the block, where its sums hold NaN or infinity."""
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise NonFiniteError(
            f"the curvature of {block.name} is not finite: the model's activations or gradients overflow or hold "
            "NaN on these rows; check the base weights, or use dtype float32"
        )
