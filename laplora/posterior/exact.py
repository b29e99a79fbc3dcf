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
    _check_limit(
        blocks, rows.rows, sum(map(len, rows.factors)), settings.exact_limit
    )  # rows that were shared count too
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
    rows = state.rows + len(class_mask)
    _check_limit(state.blocks, rows, rows * jacobians.blocks[0].jacobian.shape[1], limit)
    root = jacobians.curvature_root(class_mask)
    flat = torch.cat([part.to(root.device) for part in block_coordinates(jacobians)], 2)
    factor = (root.to(flat) @ flat).flatten(0, 1).cpu()
    check_curvature("all blocks together", factor)
    return replace(state, rows=rows, factors=(*state.factors, factor))


def _check_limit(blocks: tuple[Block, ...], rows: int, count: int, limit: int) -> None:
    """Raise ConfigError where rows have more gradients than the limit."""
    if count <= limit:
        return
    parameters = sum(b.wide * b.narrow for b in blocks)
    raise ConfigError(
        f"the exact posterior of at least {rows} rows over {parameters} LoRA parameters holds {count} gradients, "
        f"{4 * count * parameters:.3g} bytes, and factorises a square matrix of that size; the limit is {limit}. Use "
        "structure joint or joint_core, fewer rows, or raise exact_limit"
    )
