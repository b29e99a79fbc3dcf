"""The posterior over all blocks together: curvature between modules, in few directions.

The GGN is ``H ~ F^T F`` with one row of F per direction of curvature, over all blocks at once. With
``D = blockdiag(1 / lambda_b)`` the covariance of the contrasts is

    ``V = J D J^T - (J D F^T) (I + F D F^T)^-1 (F D J^T)``

(Woodbury), which cancels where F holds nearly all of J. So F is held as ``F_g = L_g Q_g`` per group g of blocks that
share a prior precision, ``Q_g`` with orthonormal rows. With coordinates ``a_g = J_g Q_g^T``, the rest
``R_g = J_g - a_g Q_g``, which no row of F meets, and ``P`` the diagonal of the coordinates' prior precisions,

    ``V = a (P + L^T L)^-1 a^T + sum_g R_g R_g^T / lambda_g``,  a = [a_A, a_B],  L = [L_A, L_B]

is the same as a sum of positive semi-definite terms, exact for one precision in all and for one per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from laplora.errors import NonFiniteError, PriorError
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import BlockDevices, ProjectedJacobians, at_least_float32, moved


@dataclass(frozen=True)
class JointPosterior:
    """Low-rank curvature over all blocks together.

    Attributes:
        blocks: which blocks, in order.
        directions: per block (directions of its group, coordinates): the block's part of ``Q_g``. A block's
            coordinates are ``U^T J V``, the narrow side running fastest. Over the blocks of a group the rows are
            orthonormal.
        factor: (rank, directions of all groups) float64, L: the curvature is ``Q^T L^T L Q``. Columns by group.
        rows: training rows summed.
        wide: per block (wide, k), orthonormal columns U.
        narrow: per block (narrow, narrow), orthonormal V.
    """

    blocks: tuple[Block, ...]
    directions: tuple[torch.Tensor, ...]
    factor: torch.Tensor
    rows: int
    wide: tuple[torch.Tensor, ...]
    narrow: tuple[torch.Tensor, ...]

    @property
    def structure(self) -> str:
        return "joint_core"

    def to(
        self, device: torch.device | str, dtype: torch.dtype, by_block: BlockDevices | None = None
    ) -> JointPosterior:
        """Return the posterior on a device, bases and directions in a number format; the factor stays float64.

        With ``by_block``, the wide bases are on the devices of the blocks' Jacobians.
        """
        return replace(
            self,
            directions=moved(self.directions, self.blocks, device, dtype, None),
            factor=self.factor.to(device),
            wide=moved(self.wide, self.blocks, device, dtype, by_block),
            narrow=moved(self.narrow, self.blocks, device, dtype, None),
        )

    @cached_property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Indices of the blocks that share orthonormal directions and a precision, by group."""
        return group_members(self.blocks)

    @cached_property
    def columns(self) -> dict[str, slice]:
        """The columns of each group's directions in ``factor`` and in ``kept``."""
        result, start = {}, 0
        for group, members in self.groups.items():
            count = self.directions[members[0]].shape[0]
            result[group] = slice(start, start + count)
            start += count
        return result

    def project(self, jacobians: ContrastJacobians) -> ProjectedJacobians:
        """Return a batch's Jacobians along the directions, and the inner products of what is left, by group.

        ``kept`` is (batch, classes - 1, directions of all groups) and ``rest`` (batch, classes - 1, classes - 1,
        groups), float64.
        """
        kept, rest = [], []
        for group in self.groups:
            along, left = self.project_group(jacobians, group)
            kept.append(along)
            rest.append(left)
        return ProjectedJacobians(jacobians.mean, torch.cat(kept, 2), torch.stack(rest, 3))

    def covariance(self, projected: ProjectedJacobians, precisions: torch.Tensor) -> torch.Tensor:
        """Return the covariance of the contrasts, (batch, classes - 1, classes - 1) float64, nats squared.

        Raises:
            PriorError: precisions that differ inside a group.
            NonFiniteError: a precision that is NaN.
        """
        by_group = self._group_precisions(precisions)
        root = self._column_precisions(by_group).rsqrt()  # 0 at an infinite precision
        scaled = self.factor * root
        cholesky = _regular_cholesky(scaled.T @ scaled)
        half = torch.linalg.solve_triangular(cholesky, (projected.kept.double() * root).mT, upper=False)
        covariance: torch.Tensor = half.mT @ half
        covariance = covariance + projected.rest.double() @ (1 / by_group)
        return (covariance + covariance.mT) / 2

    def covariance_of(self, jacobians: ContrastJacobians, precisions: torch.Tensor) -> torch.Tensor:
        return self.covariance(self.project(jacobians), precisions)

    def log_determinant_ratio(self, precisions: torch.Tensor) -> torch.Tensor:
        """Return ``log det (I + F D F^T)``, a scalar, nats; errors as ``covariance``."""
        by_group = self._group_precisions(precisions)
        scaled = self.factor * self._column_precisions(by_group).rsqrt()
        return 2 * _regular_cholesky(scaled @ scaled.T).diagonal().log().sum()

    def effective_dimension(self, precisions: torch.Tensor) -> torch.Tensor:
        """Return ``gamma_b = tr [(I + F D F^T)^-1 F_b D_b F_b^T]``, (blocks,) float64; errors as ``covariance``."""
        by_group = self._group_precisions(precisions)
        scaled = self.factor * self._column_precisions(by_group).rsqrt()
        half = torch.linalg.solve_triangular(_regular_cholesky(scaled @ scaled.T), scaled, upper=False)
        result = torch.zeros(len(self.blocks), dtype=torch.float64, device=half.device)
        for group, members in self.groups.items():
            part = half[:, self.columns[group]]
            result[list(members)] = torch.einsum("bij,ij->b", self._grams[group], part.T @ part)
        return result

    @cached_property
    def _grams(self) -> dict[str, torch.Tensor]:
        """By group, per block the inner products of its directions, float64."""
        return {
            group: torch.stack(
                [(self.directions[i] @ self.directions[i].T).double().to(self.factor.device) for i in members]
            )
            for group, members in self.groups.items()
        }

    def project_group(self, jacobians: ContrastJacobians, group: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a group's Jacobians along its directions, and the inner products of the rest, float64.

        The narrow bases are orthonormal and whole, so they turn the directions and leave everything else alone.
        """
        coordinates, outside, home = [], [], jacobians.logits.device
        for i in self.groups[group]:
            jacobian = at_least_float32(jacobians.blocks[i].jacobian)
            batch, contrasts = jacobian.shape[:2]
            flat = jacobian.flatten(0, 1)
            basis = self.wide[i].to(flat).expand(len(flat), -1, -1)
            inside = torch.bmm(basis.mT, flat)
            coordinates.append(inside.view(batch, contrasts, -1).to(home))
            if basis.shape[1] != basis.shape[2]:  # a whole basis leaves nothing out
                left = torch.baddbmm(flat, basis, inside, alpha=-1).view(batch, contrasts, -1)
                outside.append(torch.bmm(left, left.mT).to(home))
        joined = torch.cat(coordinates, 2)
        directions = self._turned_directions[group].to(joined)
        along = joined @ directions.T
        residual = torch.baddbmm(joined, along, directions.expand(len(along), -1, -1), alpha=-1)
        outside.append(torch.bmm(residual, residual.mT))
        return along.double(), torch.stack(outside).double().sum(0)

    @cached_property
    def _turned_directions(self) -> dict[str, torch.Tensor]:
        """Per group (directions, coordinates) over all its blocks, in the coordinates ``U^T J`` without V."""
        result = {}
        for group, members in self.groups.items():
            parts = []
            for i in members:
                narrow = self.narrow[i].to(self.directions[i])
                parts.append((self.directions[i].view(len(self.directions[i]), -1, len(narrow)) @ narrow.mT).flatten(1))
            result[group] = torch.cat(parts, 1)
        return result

    def _group_precisions(self, precisions: torch.Tensor) -> torch.Tensor:
        precisions = precisions.to(self.factor.device)
        if bool(precisions.isnan().any()):
            raise NonFiniteError("a prior precision is NaN: no covariance follows from it")
        result = []
        for members in self.groups.values():
            of_group = precisions[list(members)]
            if bool((of_group != of_group[0]).any()):
                raise PriorError(
                    "blocks of one group vary together in a posterior of structure 'joint_core', and here they "
                    f"have {len(set(of_group.tolist()))} different precisions: choose a scalar or group prior"
                )
            result.append(of_group[0])
        return torch.stack(result)

    def _column_precisions(self, by_group: torch.Tensor) -> torch.Tensor:
        counts = [s.stop - s.start for s in self.columns.values()]
        result: torch.Tensor = by_group.repeat_interleave(torch.tensor(counts, device=by_group.device))
        return result


def _regular_cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of ``I + matrix``; NonFiniteError where the matrix drowns the identity in rounding."""
    result: torch.Tensor
    result, failed = torch.linalg.cholesky_ex(torch.eye(len(matrix)).to(matrix) + matrix)
    if failed:
        raise NonFiniteError(
            "the posterior's precision has no Cholesky factor: the curvature is too large for the prior"
        )
    return result


def group_members(blocks: Sequence[Block]) -> dict[str, tuple[int, ...]]:
    """Return which blocks share orthonormal directions: those of one group."""
    result: dict[str, tuple[int, ...]] = {}
    for i, block in enumerate(blocks):
        result[block.group] = (*result.get(block.group, ()), i)
    return result


def build_joint_posterior(
    blocks: Sequence[Block],
    factor: Sequence[torch.Tensor],
    *,
    rows: int,
    direction_dtype: torch.dtype,
    wide: Sequence[torch.Tensor],
    narrow: Sequence[torch.Tensor],
) -> JointPosterior:
    """Return the posterior whose curvature is ``F^T F``.

    Args:
        factor: per block (rank, coordinates), the block's part of F.
        direction_dtype: the number format in which directions will be stored. They are rounded to it here, so
            that what is measured is what will be served, and held in at least float32.
        wide, narrow: per block the bases that the coordinates refer to.
    """
    directions: dict[int, torch.Tensor] = {}
    factors = []
    held = torch.promote_types(direction_dtype, torch.float32)
    for members in group_members(blocks).values():
        # QR and not the Gram matrix: directions of little curvature come out orthonormal too.
        q, r = torch.linalg.qr(torch.cat([factor[i].T for i in members]).double())
        factors.append(r.T)
        for i, part in zip(members, q.split([factor[i].shape[1] for i in members]), strict=True):
            directions[i] = part.T.to(direction_dtype).to(held).contiguous()
    joined = torch.cat(factors, 1)
    if joined.shape[0] > joined.shape[1]:  # more rows than parameters: the triangle has the same square
        joined = torch.linalg.qr(joined).R
    in_order = tuple(directions[i] for i in range(len(blocks)))
    return JointPosterior(tuple(blocks), in_order, joined.contiguous(), rows, tuple(wide), tuple(narrow))
