"""Fitting the exact posterior: the GGN over all parameters, from every training row's ``Lambda_n^{1/2} J_n``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block, ContrastJacobians
from laplora.linearised import hessian_root
from laplora.posterior.joint import JointPosterior, block_coordinates, build_joint_posterior
from laplora.posterior.passes import EXACT_LIMIT, Pass, StructureSettings, check_any_rows, check_curvature


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


def fit_exact(settings: StructureSettings, blocks: tuple[Block, ...], run_pass: Pass) -> JointPosterior:
    """Return the ``exact`` posterior; one pass, ``exact``."""
    rows = run_pass("exact", ExactRows(blocks, 0, ()), partial(add_exact_batch, limit=settings.exact_limit))
    check_any_rows(rows)
    sizes = [b.wide * b.narrow for b in blocks]
    split = [torch.split(f, sizes, 1) for f in rows.factors]
    factor = [torch.cat([f[i] for f in split]) for i in range(len(sizes))]
    return build_joint_posterior(
        blocks, factor, rows=rows.rows, structure="exact", direction_dtype=settings.basis_dtype
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
    check_curvature("all blocks together", factor)
    return replace(state, rows=state.rows + batch, factors=(*state.factors, factor))


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
