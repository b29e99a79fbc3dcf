"""Fitting the exact posterior: the GGN over all parameters, from every training row's ``Lambda_n^{1/2} J_n``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.posterior.base import block_coordinates
from laplora.posterior.joint import JointPosterior, build_joint_posterior
from laplora.posterior.passes import Pass, StructureSettings, check_any_rows, check_curvature


@dataclass(frozen=True)
class ExactRows:
    """Every training row's ``Lambda_n^{1/2} J_n``.

    Attributes:
        blocks: which blocks, in order.
        rows: number of examples held.
        factors: per batch (batch * (classes - 1), parameters), at least float32, on the CPU.
    """

    blocks: tuple[Block, ...]
    rows: int
    factors: tuple[torch.Tensor, ...]


def fit_exact(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> JointPosterior:
    """Return the ``exact`` posterior; one pass, ``exact``."""
    rows = run_pass("exact", ExactRows(blocks, 0, ()), partial(_add_batch, limit=settings.exact_limit))
    check_any_rows(rows)
    sizes = [b.wide * b.narrow for b in blocks]
    by_block = zip(*(torch.split(f, sizes, 1) for f in rows.factors), strict=True)
    return build_joint_posterior(
        blocks,
        [torch.cat(parts) for parts in by_block],
        rows=rows.rows,
        structure="exact",
        direction_dtype=settings.basis_dtype,
    )


def _add_batch(state: ExactRows, jacobians: ContrastJacobians, class_mask: torch.Tensor, limit: int) -> ExactRows:
    """Return the rows with one batch appended; ConfigError where they become more than ``limit`` allows."""
    rows, classes = state.rows + len(class_mask), class_mask.shape[1]
    directions = jacobians.blocks[0].jacobian.shape[1]
    count, parameters = rows * directions, sum(b.wide * b.narrow for b in state.blocks)
    if count > limit:
        raise ConfigError(
            f"the exact posterior of at least {rows} rows of {classes} classes over {parameters} LoRA parameters holds "
            f"{count} gradients, {4 * count * parameters:.3g} bytes, and factorises a square matrix of that size; the "
            f"limit is {limit}. Use structure joint or joint_core, fewer rows, or raise exact_limit"
        )
    root = jacobians.curvature_root(class_mask)
    flat = torch.cat(block_coordinates(jacobians), 2)
    factor = (root.to(flat) @ flat).flatten(0, 1).cpu()
    check_curvature("all blocks together", factor)
    return replace(state, rows=rows, factors=(*state.factors, factor))
