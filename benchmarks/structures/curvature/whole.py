"""Posteriors whose directions are over the parameters themselves, as large as the adapter once a direction.

``exact``: every training row's ``Lambda_n^{1/2} J_n``, so the exact GGN in its dual form. ``joint``: the leading
directions of the GGN, from the sketch that ``joint_core`` takes inside bases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import BlockDevices, at_least_float32, block_coordinates, moved
from laplora.posterior.joint import JointPosterior, orthonormal_directions
from laplora.posterior.joint_core import fit_sketch
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature


@dataclass(frozen=True)
class WholePosterior(JointPosterior):
    """A ``JointPosterior`` without bases: a block's coordinates are its Jacobian, the narrow side running fastest."""

    def to(
        self, device: torch.device | str, dtype: torch.dtype, by_block: BlockDevices | None = None
    ) -> WholePosterior:
        """As ``Posterior.to``; of ``by_block`` the directions are where the blocks' Jacobians are."""
        directions = moved(self.directions, self.blocks, device, dtype, by_block)
        return replace(self, directions=directions, factor=self.factor.to(device))

    def project_group(self, jacobians: ContrastJacobians, group: str) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``JointPosterior.project_group``."""
        members = self.groups[group]
        parts = [at_least_float32(jacobians.blocks[i].jacobian).flatten(2) for i in members]
        directions = [self.directions[i].to(part) for i, part in zip(members, parts, strict=True)]
        home = jacobians.logits.device
        along = torch.stack([(p @ d.T).double().to(home) for p, d in zip(parts, directions, strict=True)]).sum(0)
        left = along.new_zeros(*along.shape[:2], along.shape[1])
        for part, direction in zip(parts, directions, strict=True):
            # The residual first: the difference of two squares would cancel where the directions hold nearly all.
            residual = part - along.to(part) @ direction
            left += (residual @ residual.mT).double().to(home)
        return along, left


@dataclass(frozen=True)
class EveryRow:
    """Every training row's ``Lambda_n^{1/2} J_n``, per batch (batch * (classes - 1), parameters), on the CPU."""

    rows: int
    factors: tuple[torch.Tensor, ...]


def fit_exact(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> WholePosterior:
    """Return the ``exact`` posterior; one pass, ``exact``. Its memory grows with the rows, its time with their cube."""
    found = run_pass("exact", EveryRow(0, ()), _add_batch)
    check_any_rows(found)
    by_block = torch.split(torch.cat(found.factors), [b.wide * b.narrow for b in blocks], 1)
    directions, factor = orthonormal_directions(blocks, by_block, settings.basis_dtype)
    return WholePosterior(blocks, directions, factor, found.rows, (), (), "exact")


def fit_joint(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> WholePosterior:
    """Return the ``joint`` posterior, of the leading curvature over all parameters; one pass, ``core``."""
    by_block, rows = fit_sketch(settings, blocks, run_pass, ())
    directions, factor = orthonormal_directions(blocks, by_block, settings.basis_dtype)
    return WholePosterior(blocks, directions, factor, rows, (), (), "joint")


def _add_batch(state: EveryRow, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> EveryRow:
    values, vectors = torch.linalg.eigh(jacobians.curvature(class_mask))
    root = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT
    flat = torch.cat([part.to(root.device) for part in block_coordinates(jacobians)], 2)
    factor = (root.to(flat) @ flat).flatten(0, 1).cpu()
    check_curvature("all blocks together", factor)
    return EveryRow(state.rows + len(class_mask), (*state.factors, factor))
