"""Joint posteriors of a tiny problem, and the dense matrices they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dense_reference as dense
import torch
from fast_path import Rows, key_of, replay
from reference_problem import Problem
from tiny_models import Task, tiny_task
from torch import Tensor

from laplora.jacobians.blocks import Block
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.joint import JointPosterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import fit_posterior

PRIOR = Prior("scalar", {"all": 0.5})
#: Every precision is matched at these: weak, strong, and one per group, either way round.
PRIORS = {
    "weak": Prior("scalar", {"all": 0.02}),
    "strong": Prior("scalar", {"all": 30.0}),
    "group": Prior("group", {"lora_A": 3.0, "lora_B": 0.05}),
    "other group": Prior("group", {"lora_A": 0.1, "lora_B": 20.0}),
}


def cast(batches: Sequence[Rows], dtype: torch.dtype) -> list[Rows]:
    """Return the rows with their Jacobians in another number format."""
    return [
        replace(
            one,
            jacobians=replace(
                one.jacobians,
                blocks=tuple(
                    replace(
                        b,
                        jacobian=b.jacobian.to(dtype),
                        mean_input=b.mean_input.to(dtype),
                        summed_gradient=b.summed_gradient.to(dtype),
                    )
                    for b in one.jacobians.blocks
                ),
            ),
        )
        for one in batches
    ]


def covariance(found: Any, rows: Rows) -> Tensor:
    """Return the covariance of the rows' contrasts under ``PRIOR``."""
    result: Tensor = found.covariance_of(rows.jacobians, block_precisions(PRIOR, found.blocks))
    return result


def fit_joint(
    blocks: tuple[Block, ...], batches: Sequence[Rows], structure: str, joint_rank: int = 130, **settings: Any
) -> JointPosterior:
    """Return a joint posterior in float64, by default of a rank that leaves nothing out."""
    chosen = {"rank": 1000, "oversampling": 10, "basis_dtype": torch.float64} | settings
    found = fit_posterior(StructureSettings(structure, joint_rank=joint_rank, **chosen), blocks, replay(batches))
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
    """Return the dense GGN over all blocks together."""
    return dense.joint_ggn({key_of(b): problem.truth.jacobians[key_of(b)] for b in blocks}, problem.truth.probs)


def parameter_precisions(precisions: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Return the prior precision of every parameter."""
    return torch.cat([p.expand(b.wide * b.narrow) for p, b in zip(precisions, blocks, strict=True)])


def dense_curvature(posterior: JointPosterior) -> Tensor:
    """Return the curvature that a joint posterior stands for, as one matrix over all parameters."""
    sizes = [b.wide * b.narrow for b in posterior.blocks]
    rows = torch.zeros(posterior.factor.shape[1], sum(sizes), dtype=torch.float64)
    start = 0
    for i, size in enumerate(sizes):
        own = posterior.directions[i].double()
        if posterior.wide:
            own = own @ dense.kron(posterior.wide[i].double(), posterior.narrow[i].double()).T
        group = next(g for g, members in posterior.groups.items() if i in members)
        rows[posterior.columns[group], start : start + size] = own
        start += size
    factor = posterior.factor @ rows
    return factor.T @ factor


def block_traces(matrix: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Return the trace of each block on the diagonal."""
    return torch.stack([part.sum() for part in matrix.diagonal().split([b.wide * b.narrow for b in blocks])])
