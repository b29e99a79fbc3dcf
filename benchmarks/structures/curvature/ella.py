"""ELLA: the GGN inside the span of a few features of the tangent kernel, and no variance outside of it.

Deng et al., arXiv 2210.12642. The first pass keeps the Jacobians of a random subset of the training rows; the leading
eigenvectors of the tangent kernel between them are directions R in parameter space. The second measures the GGN G in
those directions. With ``a = J R^T`` the covariance of the contrasts is ``V = a (lambda I + G)^-1 a^T``. For inputs
whose gradients leave the span it falls to zero, not to the prior's.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from laplora.errors import FactorizationError, PriorError
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import BlockDevices, ProjectedJacobians, block_coordinates, moved
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature


@dataclass(frozen=True)
class KernelRows:
    """Jacobians of a random subset of the ``rows`` seen.

    Attributes:
        keys: (held,) float64, the random key of each row held; the smallest keys of all rows seen are held.
        gradients: per row held (possible classes - 1, parameters), at least float32, on the CPU.
    """

    blocks: tuple[Block, ...]
    rows: int
    keys: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    seed: int


@dataclass(frozen=True)
class FeatureSums:
    """The GGN inside the span, (features, features) float64."""

    rows: int
    curvature: torch.Tensor


@dataclass(frozen=True)
class EllaPosterior:
    """Curvature inside a span, which takes one prior precision in all.

    Attributes:
        directions: per block (features, wide * narrow), its part of R; orthonormal rows over all blocks together.
        eigenvalues: (features,) float64, of G; eigenvectors: (features, features) float64.
    """

    blocks: tuple[Block, ...]
    directions: tuple[torch.Tensor, ...]
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor
    rows: int
    structure: str = "ella"

    def to(self, device: torch.device | str, dtype: torch.dtype, by_block: BlockDevices | None = None) -> EllaPosterior:
        """Return the posterior on a device, its directions in a number format."""
        return replace(
            self,
            directions=moved(self.directions, self.blocks, device, dtype, None),
            eigenvalues=self.eigenvalues.to(device),
            eigenvectors=self.eigenvectors.to(device),
        )

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """Return a batch's Jacobians along the directions; ``rest`` has no part."""
        kept = along(jacobians, self.directions)
        rest = kept.new_zeros(*kept.shape[:2], kept.shape[1], 0)
        return ProjectedJacobians(jacobians.mean, kept, rest)

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance as ``Posterior.covariance``; PriorError for more than one precision."""
        turned = projected.kept @ self.eigenvectors
        return (turned / (_common(precisions) + self.eigenvalues)) @ turned.mT

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of a batch's contrasts, as ``covariance`` does."""
        return self.covariance(self.project(jacobians), precisions)


def fit_ella(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> EllaPosterior:
    """Return the posterior inside the span of tangent-kernel features; two passes, ``kernel`` and ``features``."""
    empty = KernelRows(blocks, 0, torch.zeros(0, dtype=torch.float64), (), settings.seed)
    rows = run_pass("kernel", empty, partial(add_kernel_batch, features=settings.joint_rank))
    directions = kernel_features(rows, settings.joint_rank, settings.basis_dtype)
    features = len(directions[0])
    nothing = FeatureSums(0, torch.zeros(features, features, dtype=torch.float64))
    sums = run_pass("features", nothing, partial(add_feature_batch, directions=directions))
    values, vectors = torch.linalg.eigh((sums.curvature + sums.curvature.T) / 2)
    return EllaPosterior(blocks, directions, values.clamp_min(0), vectors, sums.rows)


def add_kernel_batch(
    state: KernelRows, jacobians: ContrastJacobians, class_mask: torch.Tensor, features: int
) -> KernelRows:
    """Return the subset with one batch seen: at most ``4 * features`` gradients are held."""
    batch, classes = class_mask.shape
    capacity = max(1, 4 * features // (classes - 1))
    keys = torch.cat([state.keys, torch.tensor([_key(state.seed, state.rows + i) for i in range(batch)]).double()])
    held = keys.argsort()[:capacity].sort().values.tolist()
    new = [i - len(state.keys) for i in held if i >= len(state.keys)]
    gradients = [state.gradients[i] for i in held if i < len(state.keys)]
    if new:
        flat = torch.cat(block_coordinates(jacobians), 2)
        check_curvature("all blocks together", flat)
        counts = class_mask.sum(1).tolist()
        gradients += [flat[i, : counts[i] - 1].to("cpu", copy=True) for i in new]
    return replace(state, rows=state.rows + batch, keys=keys[held], gradients=tuple(gradients))


def _key(seed: int, position: int) -> float:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}.{position}".encode()))
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def kernel_features(state: KernelRows, features: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return the leading directions of the tangent kernel between the rows held, per block (features, coordinates).

    Fewer where the kernel's rank is lower. They are rounded to ``dtype`` and held in at least float32.

    Raises:
        FactorizationError: no rows, or gradients that all vanish.
    """
    check_any_rows(state)
    stacked = torch.cat(state.gradients).double()
    values, vectors = torch.linalg.eigh(stacked @ stacked.T)
    values, vectors = values.flip(0)[:features], vectors.flip(1)[:, :features]
    rank = int((values > 1e-12 * values[0]).sum())  # the kernel's eigenvalues are right to about 1e-15 of the largest
    if values[0] <= 0:
        raise FactorizationError("the gradients of the kernel's rows all vanish: it has no features")
    orthonormal = torch.linalg.qr(stacked.T @ vectors[:, :rank]).Q
    held = torch.promote_types(dtype, torch.float32)
    return tuple(part.T.to(dtype).to(held) for part in orthonormal.split([b.wide * b.narrow for b in state.blocks]))


def add_feature_batch(
    sums: FeatureSums, jacobians: ContrastJacobians, class_mask: torch.Tensor, directions: Sequence[torch.Tensor]
) -> FeatureSums:
    """Return the sums with one batch added."""
    hessian = jacobians.curvature(class_mask)
    features = along(jacobians, directions)
    check_curvature("all blocks together", features, hessian)
    batch = torch.einsum("nck,nce,nel->kl", features, hessian, features).cpu()
    return FeatureSums(sums.rows + len(hessian), sums.curvature + batch)


def along(jacobians: ContrastJacobians, directions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the Jacobians along the directions, (batch, classes - 1, features) float64."""
    parts = zip(block_coordinates(jacobians), directions, strict=True)
    return torch.stack([(part @ direction.to(part).T).double() for part, direction in parts]).sum(0)


def _common(precisions: torch.Tensor) -> torch.Tensor:
    if bool((precisions != precisions[0]).any()):
        raise PriorError(
            "a posterior of structure 'ella' takes a prior of granularity scalar: its blocks vary together"
        )
    return precisions[0]
