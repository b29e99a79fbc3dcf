"""The structures that only serve comparison, against dense matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dense_reference as dense
import pytest
import torch
from dense_reference import Problem
from fast_path import by_key, close, key_of, replay, rows_of
from joint_problem import dense_curvature, dense_ggn, flat_jacobians, held_out
from tiny_models import Task, tiny_model, tiny_task

from benchmarks.structures.curvature import fit_posterior, needs_tokens
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.passes import StructureSettings
from laplora.prompts.rows import EncodedRow

GROUP = Prior("group", {"lora_A": 3.0, "lora_B": 0.05})
KINDS = ("expand", "last")


def fit(model: Any, task: Task, structure: str, *, batch_size: int = 16, **settings: Any) -> Any:
    """Return a posterior in float64; kept ranks are cut to each block's size, so by default all is kept."""
    chosen = {"rank": 1000, "oversampling": 1000, "basis_dtype": torch.float64} | settings
    rows = rows_of(model, task, batch_size=batch_size, tokens=needs_tokens(structure))
    return fit_posterior(StructureSettings(structure, **chosen), find_blocks(model, task.classes), replay(rows))


def scalar(found: Any, precision: float) -> torch.Tensor:
    return block_precisions(Prior("scalar", {"all": precision}), found.blocks)


def jacobians_of(problem: Problem, task: Task, found: Any) -> Any:
    return contrast_jacobians(problem.model, task.batch(), task.label_ids, found.blocks)


def test_over_all_parameters_it_is_the_posterior_of_the_exact_ggn(problem: Problem) -> None:
    found, task = fit(problem.model, problem.task, "exact"), held_out(problem)
    curvature = dense_curvature(found)
    close(curvature, dense_ggn(problem, found.blocks), 1e-9)
    flat = flat_jacobians(problem, found.blocks, task)
    for prior in (GROUP, Prior("scalar", {"all": 0.3})):
        precisions = block_precisions(prior, found.blocks)
        diagonal = torch.cat([p.expand(b.wide * b.narrow) for p, b in zip(precisions, found.blocks, strict=True)])
        expected = flat @ torch.linalg.inv(curvature + diagonal.diag()) @ flat.mT
        close(found.covariance_of(jacobians_of(problem, task, found), precisions), expected, 1e-9)


@pytest.mark.parametrize("prior", [GROUP, Prior("scalar", {"all": 0.3})], ids=lambda prior: prior.granularity)
def test_the_diagonal_is_that_of_the_dense_ggn(problem: Problem, prior: Prior) -> None:
    found, task = fit(problem.model, problem.task, "diagonal", batch_size=7), held_out(problem)
    precisions = block_precisions(prior, found.blocks)
    by_block = {key_of(b): float(p) for b, p in zip(found.blocks, precisions, strict=True)}
    curvature = {key: torch.diag(torch.diag(ggn)) for key, ggn in problem.truth.ggn.items()}
    full = dense.logit_covariance(dense.jacobians(problem.model, task.batch(), task.label_ids), curvature, by_block)
    q = contrasts(problem.task.classes)
    jacobians = jacobians_of(problem, task, found)
    # The curvature is rounded to float32, 6e-8 of each entry; the rest is float64.
    close(found.covariance_of(jacobians, precisions), q.T @ full @ q, 1e-6)


def test_both_kinds_are_the_exact_ggn_where_it_factorises() -> None:
    """Equal rows of one token: a factor 1/N too many or too few is off by the number of rows."""
    model = tiny_model("llama")
    task = replace(tiny_task(examples=5), rows=[EncodedRow((7,), 3)] * 5)
    ggn = dense.truth(model, task.batch(), task.label_ids).ggn
    # One token has nothing to attend to: the blocks of queries and keys are zero, and rounding in the others' scale.
    rounding = 1e-9 * max(float(block.abs().max()) for block in ggn.values())
    for kind in KINDS:
        found = fit(model, task, f"kfac_{kind}", batch_size=2)
        parts = zip(found.wide, found.narrow, found.scale, found.tail, strict=True)
        curvatures = [dense.block_curvature(dense.Basis(u, v), s, t) for u, v, s, t in parts]
        for key, block in by_key(curvatures, found.blocks).items():
            torch.testing.assert_close(block, ggn[key], rtol=1e-9, atol=rounding)
