"""Joint posteriors of a tiny problem, and the dense matrices they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dense_reference as dense
import torch
from dense_reference import Problem
from fast_path import Rows, key_of, replay
from tiny_models import Task, tiny_task
from torch import Tensor

from laplora.jacobians.blocks import Block
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.joint import JointPosterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior

PRIOR = Prior("scalar", {"all": 0.5})


def changed(batches: Sequence[Rows], change: Callable[[Tensor], Tensor]) -> list[Rows]:
    """Return the rows with every block's Jacobian changed."""
    made = []
    for rows in batches:
        blocks = tuple(replace(b, jacobian=change(b.jacobian)) for b in rows.jacobians.blocks)
        made.append(replace(rows, jacobians=replace(rows.jacobians, blocks=blocks)))
    return made


def covariance(found: Any, rows: Rows) -> Tensor:
    """Return the covariance of the rows' contrasts under ``PRIOR``."""
    result: Tensor = found.covariance_of(rows.jacobians, block_precisions(PRIOR, found.blocks))
    return result


def fit_joint(
    blocks: tuple[Block, ...], batches: Sequence[Rows], joint_rank: int = 130, **settings: Any
) -> JointPosterior:
    """Return a joint posterior in float64, by default of ranks that leave nothing out: the exact posterior."""
    chosen = {"rank": 1000, "oversampling": 10, "basis_dtype": torch.float64} | settings
    found = fit_posterior(StructureSettings("joint_core", joint_rank=joint_rank, **chosen), blocks, replay(batches))
    assert isinstance(found, JointPosterior)
    return found


def held_out(problem: Problem) -> Task:
    """Return rows that were not fitted."""
    return replace(tiny_task(examples=9, seed=99), label_ids=problem.task.label_ids)


def flat_jacobians(problem: Problem, blocks: Sequence[Block], task: Task | None = None) -> Tensor:
    """Return the dense Jacobians of the contrasts over all blocks, (n, classes - 1, parameters)."""
    by_block = problem.truth.jacobians
    if task is not None:
        by_block = dense.jacobians(problem.model, task.batch(), task.label_ids)
    q = contrasts(problem.task.classes)
    return q.T @ torch.cat([by_block[key_of(b)].flatten(2) for b in blocks], 2)


def dense_ggn(problem: Problem, blocks: Sequence[Block]) -> Tensor:
    return dense.joint_ggn({key_of(b): problem.truth.jacobians[key_of(b)] for b in blocks}, problem.truth.probs)


def parameter_precisions(precisions: Tensor, blocks: Sequence[Block]) -> Tensor:
    return torch.cat([p.expand(b.wide * b.narrow) for p, b in zip(precisions, blocks, strict=True)])


def dense_curvature(posterior: JointPosterior) -> Tensor:
    """Return the curvature that a joint posterior stands for, as one matrix over all parameters."""
    sizes = [b.wide * b.narrow for b in posterior.blocks]
    rows = torch.zeros(posterior.factor.shape[1], sum(sizes), dtype=torch.float64)
    for i, (block, columns) in enumerate(zip(posterior.blocks, rows.split(sizes, 1), strict=True)):
        directions = posterior.directions[i].double()
        if posterior.wide:  # those of a comparison have no bases
            directions = directions @ dense.kron(posterior.wide[i].double(), posterior.narrow[i].double()).T
        columns[posterior.columns[block.group]] = directions
    factor = posterior.factor @ rows
    return factor.T @ factor
