"""A pool's rows as features of few numbers: exact along the posterior's directions, sketched beside them.

With the notation of ``laplora.posterior.joint`` the joint covariance of the contrasts of rows is

    ``k(x, x') = a(x) (P + L^T L)^-1 a(x')^T + sum_g R_g(x) R_g(x')^T / lambda_g``.

The first term has few directions. For the second, ``R`` has as many numbers as there are weights, so only
``R S`` is kept, with S a random matrix of one sign in each row (Charikar, Chen and Farach-Colton 2002, *Finding
frequent items in data streams*). Inner products of R S are those of R on average, with an error of about
``sqrt(2 / size)`` of the product of the norms. Each row is then turned so that its own covariance is exact.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import ProjectedJacobians, at_least_float32
from laplora.posterior.joint import JointPosterior

#: Numbers a contrast that the rest is sketched by (benchmarks/selection says what that costs).
SIZE = 512
_SEED = 0


@dataclass(frozen=True)
class FeatureMap:
    """Makes features of Jacobians, under one posterior at one prior precision.

    Attributes:
        posterior, precisions: as of ``Posterior.covariance``.
        within: (kept, kept) float64, a root W with ``W W^T = (P + L^T L)^-1``.
        beside: (kept, size), the sketched directions, whose share is taken from the sketch of a Jacobian.
        hashes: per block its rows of S: (wide * narrow,) int64 columns and float32 signs over ``sqrt(lambda)``.
    """

    posterior: JointPosterior
    precisions: torch.Tensor
    within: torch.Tensor
    beside: torch.Tensor
    hashes: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @classmethod
    def of(cls, posterior: JointPosterior, precisions: torch.Tensor, size: int = SIZE) -> FeatureMap:
        """Return the map; the same for the same posterior and size.

        Raises:
            PriorError, NonFiniteError: as ``JointPosterior.covariance``.
        """
        curved = posterior.factor.T @ posterior.factor + torch.diag(posterior.by_column(precisions))
        lower = torch.linalg.cholesky(curved)
        within = torch.linalg.inv(lower).T
        home = posterior.factor.device
        hashes = tuple(  # where the block's Jacobians are
            _hash(block, size, float(precision), basis.device)
            for block, precision, basis in zip(
                posterior.blocks, precisions, posterior.wide or posterior.directions, strict=True
            )
        )
        beside = torch.cat(
            [
                torch.stack([_sketched(_direction(posterior, i), hashes[i], size).to(home) for i in members]).sum(0)
                for members in posterior.groups.values()
            ]
        )
        return cls(posterior, precisions, within, beside, hashes)

    @property
    def size(self) -> int:
        """Features of a contrast."""
        return sum(self.beside.shape)

    def features(self, jacobians: ContrastJacobians, projected: ProjectedJacobians) -> torch.Tensor:
        """Return a batch's features, (batch, directions, kept + size) float32.

        Args:
            projected: the posterior's projection of the Jacobians.
        """
        batch, directions = jacobians.blocks[0].jacobian.shape[:2]
        size = self.beside.shape[1]
        total = -(projected.kept.float().flatten(0, 1) @ self.beside)
        for block, hashed in zip(jacobians.blocks, self.hashes, strict=True):
            own = _sketched(at_least_float32(block.jacobian).flatten(0, 1).flatten(1), hashed, size)
            total += own.to(total.device)
        sketch = total.view(batch, directions, size)
        by_group = torch.stack([self.precisions[members[0]] for members in self.posterior.groups.values()])
        rest = projected.rest.double() @ (1 / by_group.to(projected.rest.device))
        along = (projected.kept.double() @ self.within).float()
        return torch.cat([along, _with_products(sketch, rest)], 2)


def _hash(block: Block, size: int, precision: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block's rows of S over the root of its precision, from its name alone."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{block.name}.selection".encode()) ^ _SEED)
    numbers = block.wide * block.narrow
    columns = torch.randint(0, size, (numbers,), generator=draw)
    signs = torch.randint(0, 2, (numbers,), generator=draw).float() * 2 - 1
    return columns.to(device), (signs / precision**0.5).to(device)


def _sketched(rows: torch.Tensor, hashed: tuple[torch.Tensor, torch.Tensor], size: int) -> torch.Tensor:
    """Return rows (n, wide * narrow) times S, (n, size) float32."""
    columns, signs = hashed
    rows = rows.to(columns.device)
    total = torch.zeros(size, len(rows), device=rows.device)
    total.index_add_(0, columns, (rows.float() * signs).T.contiguous())
    return total.T


def _direction(posterior: JointPosterior, index: int) -> torch.Tensor:
    """Return a block's part of its group's directions as weights, (directions, wide * narrow)."""
    part = at_least_float32(posterior.directions[index])
    if not posterior.wide:
        return part
    wide, narrow = posterior.wide[index].to(part), posterior.narrow[index].to(part)
    whole: torch.Tensor = wide @ part.view(len(part), -1, len(narrow)) @ narrow.T
    return whole.flatten(1)


def _with_products(sketch: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """Return rows (batch, directions, size) turned so that their inner products are (batch, directions, directions)."""
    values, vectors = torch.linalg.eigh((sketch @ sketch.mT).double())
    floor = torch.finfo(torch.float32).eps * values[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
    undone = (vectors * values.clamp_min(floor).rsqrt()[:, None, :]) @ vectors.mT
    wanted, basis = torch.linalg.eigh((products + products.mT) / 2)
    root = (basis * wanted.clamp_min(0).sqrt()[:, None, :]) @ basis.mT
    turned: torch.Tensor = root @ undone @ sketch.double()
    return turned.float()
