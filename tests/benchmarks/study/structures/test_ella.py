"""ELLA against the dense GGN inside its features, and the rows that its kernel is made of."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from fast_path import replay, rows_of
from joint_problem import dense_ggn, flat_jacobians, held_out
from reference_problem import Problem
from tiny_models import Task, tiny_model, tiny_task

from benchmarks.study.structures import fit_posterior
from benchmarks.study.structures.ella import EllaPosterior, KernelRows, add_kernel_batch, kernel_features
from laplora.errors import FactorizationError, PriorError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.passes import StructureSettings

NO_KEYS = torch.zeros(0, dtype=torch.float64)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Task, tuple[Block, ...]]:
    """A model, 24 rows of three classes, and its blocks."""
    model = tiny_model("llama")
    return model, tiny_task(), find_blocks(model, 3)


def fit(model: Any, task: Task, features: int) -> EllaPosterior:
    settings = StructureSettings("ella", joint_rank=features, basis_dtype=torch.float64)
    blocks = find_blocks(model, task.classes)
    posterior = fit_posterior(settings, blocks, replay(rows_of(model, task, batch_size=16)))
    assert isinstance(posterior, EllaPosterior)
    return posterior


@pytest.mark.parametrize("precision", [0.02, 30.0])
def test_ella_is_the_exact_posterior_inside_its_features(problem: Problem, precision: float) -> None:
    """With features that span every training gradient: equal on the span's part of an input, 0 outside of it."""
    posterior = fit(problem.model, problem.task, 130)
    precisions = block_precisions(Prior("scalar", {"all": precision}), posterior.blocks)
    ggn = dense_ggn(problem, posterior.blocks)
    covariance = torch.linalg.inv(ggn + precision * torch.eye(len(ggn), dtype=torch.float64))
    rows = torch.cat(posterior.directions, 1)
    task = held_out(problem)
    inside = flat_jacobians(problem, posterior.blocks, task) @ rows.T @ rows
    expected = inside @ covariance @ inside.mT
    jacobians = contrast_jacobians(problem.model, task.batch(), task.label_ids, posterior.blocks)
    close = {"rtol": 0, "atol": 1e-9 * float(expected.abs().max())}
    torch.testing.assert_close(posterior.covariance_of(jacobians, precisions), expected, **close)
    log_determinant = torch.logdet(torch.eye(len(ggn), dtype=torch.float64) + ggn / precision)
    torch.testing.assert_close(posterior.log_determinant_ratio(precisions), log_determinant, rtol=1e-9, atol=0)


def test_the_kernel_rows_are_a_seeded_random_subset(tiny: Any) -> None:
    model, task, blocks = tiny

    def held(seed: int, features: int, batch_size: int = 7) -> KernelRows:
        empty = KernelRows(blocks, 0, NO_KEYS, (), seed)
        run_pass = replay(rows_of(model, task, batch_size=batch_size))
        return run_pass("", empty, partial(add_kernel_batch, features=features))

    one, everything = held(0, 5), held(0, 100)
    assert (one.rows, len(one.gradients), len(everything.gradients)) == (24, 10, 24)  # 4 x 5 contrasts: 10 rows
    assert torch.equal(one.keys, held(0, 5, batch_size=24).keys)
    assert not torch.equal(one.keys, held(1, 5).keys)
    smallest = everything.keys.argsort()[:10].sort().values.tolist()
    assert all(torch.equal(g, everything.gradients[i]) for g, i in zip(one.gradients, smallest, strict=True))


def test_ella_with_few_features_is_the_ggn_in_their_span(problem: Problem) -> None:
    """A dense subspace posterior in these features, on rows that were not fitted."""
    posterior = fit(problem.model, problem.task, 6)
    span = torch.cat(posterior.directions, 1)
    torch.testing.assert_close(span @ span.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    inside = span @ dense_ggn(problem, posterior.blocks) @ span.T
    task = held_out(problem)
    a = flat_jacobians(problem, posterior.blocks, task) @ span.T
    expected = a @ torch.linalg.inv(inside + 0.5 * torch.eye(6, dtype=torch.float64)) @ a.mT
    jacobians = contrast_jacobians(problem.model, task.batch(), task.label_ids, posterior.blocks)
    covariance = posterior.covariance_of(jacobians, block_precisions(Prior("scalar", {"all": 0.5}), posterior.blocks))
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_neither_precisions_by_group_nor_vanishing_gradients(tiny: Any) -> None:
    model, task, blocks = tiny
    precisions = block_precisions(Prior("group", {"lora_A": 1.0, "lora_B": 2.0}), blocks)
    with pytest.raises(PriorError, match="takes a prior of granularity scalar"):
        fit(model, task, 6).log_determinant_ratio(precisions)
    nothing = KernelRows(blocks, 0, NO_KEYS, (), 0)
    with pytest.raises(FactorizationError, match="no rows were"):
        kernel_features(nothing, 2, torch.float32)
    size = sum(b.wide * b.narrow for b in blocks)
    still = replace(nothing, rows=2, gradients=(torch.zeros(2, size),))
    with pytest.raises(FactorizationError, match="all vanish"):
        kernel_features(still, 2, torch.float32)
