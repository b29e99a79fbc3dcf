"""Passes over the training rows for the joint posteriors: states, and what is made of them.

The GGN over all P parameters, ``H = sum_n J_n^T Lambda_n J_n``, is never formed. It is seen

- as a sketch ``Y = H Omega`` (P x m), a sum over rows (``joint``, and ``joint_core`` in Kronecker coordinates);
- as its rows ``Lambda_n^{1/2} J_n``, all of them (``exact``);
- inside the span of a few features of the tangent kernel (``ella``: Deng et al., arXiv 2210.12642).
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from laplora.errors import ConfigError, FactorizationError, NonFiniteError
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.linearised import contrast_hessian, hessian_root
from laplora.posterior.curvature import KroneckerBasis
from laplora.posterior.joint import JointPosterior, block_coordinates, build_joint_posterior

#: Rows times (classes - 1) up to which the exact posterior is fitted unless the settings say otherwise.
EXACT_LIMIT = 4000


@dataclass(frozen=True)
class JointSketch:
    """The GGN over all blocks times a Gaussian test matrix; two of them add up.

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


@dataclass(frozen=True)
class ExactRows:
    """Every training row's ``Lambda_n^{1/2} J_n``, by batch.

    Attributes:
        blocks: which blocks, in order.
        rows: number of examples held.
        factors: per batch (batch * (classes - 1), parameters), at least float32, on the CPU.
    """

    blocks: tuple[Block, ...]
    rows: int
    factors: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class KernelRows:
    """Jacobians of a random subset of the training rows.

    Attributes:
        blocks: which blocks, in order.
        rows: number of examples seen.
        keys: (held,) float64, the random key of each row held; the smallest keys of all rows seen are held.
        gradients: per row held (possible classes - 1, parameters), at least float32, on the CPU.
        seed: of the keys.
    """

    blocks: tuple[Block, ...]
    rows: int
    keys: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    seed: int


@dataclass(frozen=True)
class FeatureSums:
    """The GGN inside a span; two of them add up.

    Attributes:
        rows: number of examples summed.
        curvature: (features, features) float64.
    """

    rows: int
    curvature: torch.Tensor


def empty_sketch(
    blocks: Sequence[Block], *, columns: int, seed: int, bases: Sequence[KroneckerBasis] = ()
) -> JointSketch:
    """Return the sketch over no rows.

    Args:
        columns: the rank to keep and an oversampling; cut to the number of coordinates.
        bases: per block the bases whose coordinates are sketched (``joint_core``), or none for the
            parameters themselves (``joint``).
    """
    sizes = [b.wide * b.narrow for b in blocks]
    if bases:
        sizes = [b.wide.shape[1] * b.narrow.shape[1] for b in bases]
    columns = min(columns, sum(sizes))
    return JointSketch(tuple(blocks), 0, tuple(torch.zeros(s, columns, dtype=torch.float64) for s in sizes), seed)


def add_sketch_batch(
    state: JointSketch, jacobians: ContrastJacobians, class_mask: torch.Tensor, bases: Sequence[KroneckerBasis] = ()
) -> JointSketch:
    """Return the sketch with one batch added; products and sums in float64, so batching does not matter.

    Raises:
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
    """
    hessian = contrast_hessian(jacobians.logits, class_mask)
    coordinates = block_coordinates(jacobians, [b.wide for b in bases], [b.narrow for b in bases])
    seen = torch.zeros((), dtype=torch.float64, device=hessian.device)
    for i, own in enumerate(coordinates):
        seen = seen + own.double() @ joint_test_matrix(state, i).to(hessian.device)
    _check_finite(seen, hessian)
    weighted = (hessian @ seen).flatten(0, 1)
    sketch = tuple(
        old + (own.flatten(0, 1).double().T @ weighted).cpu()
        for old, own in zip(state.sketch, coordinates, strict=True)
    )
    return replace(state, rows=state.rows + len(hessian), sketch=sketch)


def merge_sketches(first: JointSketch, second: JointSketch) -> JointSketch:
    """Return the sketch over the rows of both, for example of two workers.

    Raises:
        FactorizationError: sketches of other blocks, sizes or seeds.
    """
    same = [s.shape for s in first.sketch] == [s.shape for s in second.sketch]
    if first.blocks != second.blocks or first.seed != second.seed or not same:
        raise FactorizationError("joint sketches merge only with the same blocks, sketch size and seed")
    sketch = tuple(a + b for a, b in zip(first.sketch, second.sketch, strict=True))
    return replace(first, rows=first.rows + second.rows, sketch=sketch)


def joint_test_matrix(state: JointSketch, index: int) -> torch.Tensor:
    """Return a block's rows of the Gaussian test matrix, (coordinates, columns) float64.

    Drawn when needed and never stored. It depends on the block's name and the seed only, so every worker draws
    the same; where the columns are as many as all blocks' coordinates, it is the identity.
    """
    size, columns = state.sketch[index].shape
    if columns == sum(s.shape[0] for s in state.sketch):
        start = sum(s.shape[0] for s in state.sketch[:index])
        return torch.eye(columns, dtype=torch.float64)[start : start + size]
    seed = zlib.crc32(f"{state.blocks[index].name}.joint".encode()) ^ state.seed
    # float32 numbers: twice as fast to draw, and as good a test matrix.
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(seed)).double()


def sketched_factor(state: JointSketch, rank: int) -> tuple[torch.Tensor, ...]:
    """Return F with ``F^T F`` the best approximation of the GGN of that rank that the sketch knows.

    Fixed-rank Nystrom approximation with a shift for stability (Tropp et al., arXiv 1706.05736, algorithm 3),
    block by block: only matrices of the sketch's number of columns are factorised.

    Returns:
        Per block (rank, coordinates) float64, rows by descending curvature.

    Raises:
        FactorizationError: no rows, or still not positive definite after five shifts, each 100 times the last.
    """
    if state.rows == 0:
        raise FactorizationError("no rows were summed: the curvature of nothing has no directions")
    columns = state.sketch[0].shape[1]
    rank = min(rank, columns)
    size = math.sqrt(sum(float(s.square().sum()) for s in state.sketch))
    if size == 0:
        return tuple(s.new_zeros(rank, s.shape[0]) for s in state.sketch)
    core, gram = torch.zeros(2, columns, columns, dtype=torch.float64)
    for i, own in enumerate(state.sketch):
        test = joint_test_matrix(state, i)
        core, gram = core + test.T @ own, gram + test.T @ test
    shift = math.sqrt(sum(s.shape[0] for s in state.sketch)) * torch.finfo(torch.float64).eps * size
    attempt, shifted = 0, torch.linalg.cholesky_ex((core + core.T) / 2 + shift * gram)
    while shifted.info and attempt < 4:
        attempt, shift = attempt + 1, shift * 100
        shifted = torch.linalg.cholesky_ex((core + core.T) / 2 + shift * gram)
    if shifted.info:
        raise FactorizationError(f"the joint curvature sketch is not positive semidefinite (last shift {shift:.1e})")
    if attempt:
        warnings.warn(f"joint sketch factorised with a shift of {shift:.1e}", RuntimeWarning, stacklevel=2)
    halves = [
        torch.linalg.solve_triangular(shifted.L, (own + shift * joint_test_matrix(state, i)).T, upper=False)
        for i, own in enumerate(state.sketch)
    ]
    squares, rotation = torch.linalg.eigh(sum((h @ h.T for h in halves), torch.zeros_like(core)))
    squares, rotation = squares.flip(0)[:rank], rotation.flip(1)[:, :rank]
    unshift = ((squares - shift).clamp_min(0) / squares.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    return tuple(unshift[:, None] * (rotation.T @ h) for h in halves)


def joint_from_sketch(
    state: JointSketch, rank: int, direction_dtype: torch.dtype, bases: Sequence[KroneckerBasis] = ()
) -> JointPosterior:
    """Return the ``joint`` posterior, or with bases the ``joint_core`` posterior, of a sketch.

    Raises:
        FactorizationError: see ``sketched_factor``.
    """
    return build_joint_posterior(
        state.blocks,
        sketched_factor(state, rank),
        rows=state.rows,
        structure="joint_core" if bases else "joint",
        direction_dtype=direction_dtype,
        wide=[b.wide for b in bases],
        narrow=[b.narrow for b in bases],
    )


def check_exact_size(rows: int, classes: int, blocks: Sequence[Block], limit: int = EXACT_LIMIT) -> None:
    """Raise where the exact posterior of so many rows is larger than the limit.

    Raises:
        ConfigError: rows * (classes - 1) above ``limit``.
    """
    count, parameters = rows * (classes - 1), sum(b.wide * b.narrow for b in blocks)
    if count > limit:
        raise ConfigError(
            f"the exact posterior of at least {rows} rows of {classes} classes over {parameters} LoRA parameters holds "
            f"{count} gradients, {4 * count * parameters:.3g} bytes, and factorises a square matrix of that size; the "
            f"limit is {limit}. Use structure joint or joint_core, fewer rows, or raise exact_limit"
        )


def add_exact_batch(
    state: ExactRows, jacobians: ContrastJacobians, class_mask: torch.Tensor, limit: int = EXACT_LIMIT
) -> ExactRows:
    """Return the rows with one batch appended.

    Raises:
        ConfigError: more than ``limit`` rows * (classes - 1).
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
    """
    batch, classes = class_mask.shape
    check_exact_size(state.rows + batch, classes, state.blocks, limit)
    root = hessian_root(jacobians.logits, class_mask)
    flat = torch.cat(block_coordinates(jacobians), 2)
    factor = (root.to(flat) @ flat).flatten(0, 1).cpu()
    _check_finite(factor)
    return replace(state, rows=state.rows + batch, factors=(*state.factors, factor))


def joint_from_rows(state: ExactRows, direction_dtype: torch.dtype) -> JointPosterior:
    """Return the ``exact`` posterior.

    Raises:
        FactorizationError: no rows.
    """
    if state.rows == 0:
        raise FactorizationError("no rows were summed: the curvature of nothing has no directions")
    sizes = [b.wide * b.narrow for b in state.blocks]
    split = [torch.split(f, sizes, 1) for f in state.factors]
    factor = [torch.cat([f[i] for f in split]) for i in range(len(sizes))]
    return build_joint_posterior(
        state.blocks, factor, rows=state.rows, structure="exact", direction_dtype=direction_dtype
    )


def empty_kernel_rows(blocks: Sequence[Block], seed: int) -> KernelRows:
    """Return the subset of no rows."""
    return KernelRows(tuple(blocks), 0, torch.zeros(0, dtype=torch.float64), (), seed)


def add_kernel_batch(
    state: KernelRows, jacobians: ContrastJacobians, class_mask: torch.Tensor, features: int
) -> KernelRows:
    """Return the subset with one batch seen: at most ``4 * features`` gradients are held.

    A row's random key depends on the seed and the row's position in the pass, so the subset does not depend on
    the batch size. Impossible classes have no gradient that matters and none is held.

    Raises:
        NonFiniteError: a Jacobian that is NaN or infinite.
    """
    batch, classes = class_mask.shape
    capacity = max(1, 4 * features // (classes - 1))
    keys = torch.cat([state.keys, torch.tensor([_key(state.seed, state.rows + i) for i in range(batch)]).double()])
    held = keys.argsort()[:capacity].sort().values.tolist()
    new = [i - len(state.keys) for i in held if i >= len(state.keys)]
    gradients = [state.gradients[i] for i in held if i < len(state.keys)]
    if new:
        flat = torch.cat(block_coordinates(jacobians), 2)
        _check_finite(flat)
        counts = class_mask.sum(1).tolist()
        gradients += [flat[i, : counts[i] - 1].to("cpu", copy=True) for i in new]
    return replace(state, rows=state.rows + batch, keys=keys[held], gradients=tuple(gradients))


def _key(seed: int, position: int) -> float:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}.{position}".encode()))
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def ella_features(state: KernelRows, features: int, direction_dtype: torch.dtype) -> JointPosterior:
    """Return the ``ella`` posterior before its curvature is measured: orthonormal directions and a factor of 0.

    The leading eigenvectors of the tangent kernel between the gradients held (Nystrom features: Deng et al.,
    arXiv 2210.12642), as directions in parameter space; fewer than asked for where the kernel's rank is lower.

    Raises:
        FactorizationError: no rows, or gradients that all vanish.
    """
    if not state.gradients:
        raise FactorizationError("no rows were seen: the tangent kernel of nothing has no features")
    stacked = torch.cat(state.gradients).double()
    values, vectors = torch.linalg.eigh(stacked @ stacked.T)
    values, vectors = values.flip(0)[:features], vectors.flip(1)[:, :features]
    rank = int((values > 1e-12 * values[0]).sum())  # the kernel's eigenvalues are right to about 1e-15 of the largest
    if values[0] <= 0:
        raise FactorizationError("the gradients of the kernel's rows all vanish: it has no features")
    factor = torch.split(vectors[:, :rank].T @ stacked, [b.wide * b.narrow for b in state.blocks], 1)
    posterior = build_joint_posterior(
        state.blocks, factor, rows=state.rows, structure="ella", direction_dtype=direction_dtype
    )
    return replace(posterior, factor=torch.zeros(rank, rank, dtype=torch.float64))


def empty_feature_sums(posterior: JointPosterior) -> FeatureSums:
    """Return the sums over no rows."""
    return FeatureSums(0, torch.zeros_like(posterior.factor))


def add_feature_batch(
    sums: FeatureSums, jacobians: ContrastJacobians, class_mask: torch.Tensor, posterior: JointPosterior
) -> FeatureSums:
    """Return the sums with one batch added.

    Raises:
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
    """
    hessian = contrast_hessian(jacobians.logits, class_mask)
    device, dtype = hessian.device, jacobians.blocks[0].jacobian.dtype
    placed = posterior.to(device, torch.promote_types(dtype, torch.float32))
    features = placed.project(jacobians).kept
    _check_finite(features, hessian)
    batch = torch.einsum("nck,nce,nel->kl", features, hessian, features).cpu()
    return FeatureSums(sums.rows + len(hessian), sums.curvature + batch)


def merge_feature_sums(first: FeatureSums, second: FeatureSums) -> FeatureSums:
    """Return the sums over the rows of both; both must have used the same features."""
    return FeatureSums(first.rows + second.rows, first.curvature + second.curvature)


def ella_from_sums(posterior: JointPosterior, sums: FeatureSums) -> JointPosterior:
    """Return the ``ella`` posterior: the GGN inside the features' span, no variance outside of it.

    ``V = a (lambda I + G)^-1 a^T`` with ``a = J R^T``: for inputs whose gradients leave the span of the training
    rows' features the variance falls to zero, not to the prior's.
    """
    values, vectors = torch.linalg.eigh((sums.curvature + sums.curvature.T) / 2)
    return replace(posterior, factor=values.clamp_min(0).sqrt()[:, None] * vectors.T, rows=sums.rows)


def _check_finite(*tensors: torch.Tensor) -> None:
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise NonFiniteError(
            "the joint curvature is not finite: the model's activations or gradients overflow or hold NaN on these "
            "rows; check the base weights, or use dtype float32"
        )
