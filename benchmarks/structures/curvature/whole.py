"""The posterior of the exact GGN, in its dual form: its directions are every training row's ``Lambda_n^{1/2} J_n``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import at_least_float32, block_coordinates
from laplora.posterior.joint import JointPosterior, orthonormal_directions
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature


@dataclass(frozen=True)
class WholePosterior(JointPosterior):
    """A ``JointPosterior`` without bases: a block's coordinates are its Jacobian, the narrow side running fastest."""

    def project_group(self, jacobians: ContrastJacobians, group: str) -> tuple[torch.Tensor, torch.Tensor]:
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
    every_row = run_pass("exact", EveryRow(0, ()), _add_batch)
    check_any_rows(every_row)
    by_block = torch.split(torch.cat(every_row.factors), [b.wide * b.narrow for b in blocks], 1)
    directions, factor = orthonormal_directions(blocks, by_block, settings.basis_dtype)
    return WholePosterior(blocks, directions, factor, every_row.rows, (), (), "exact")


def _add_batch(state: EveryRow, jacobians: ContrastJacobians, class_mask: torch.Tensor) -> EveryRow:
    values, vectors = torch.linalg.eigh(jacobians.curvature(class_mask))
    root = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT
    flat = torch.cat([part.to(root.device) for part in block_coordinates(jacobians)], 2)
    factor = (root.to(flat) @ flat).flatten(0, 1).cpu()
    check_curvature("all blocks together", factor)
    return EveryRow(state.rows + len(class_mask), (*state.factors, factor))
