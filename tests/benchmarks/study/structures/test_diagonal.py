"""The diagonal posterior against dense matrices, exactly and by levels."""

from __future__ import annotations

from dataclasses import replace

import dense_reference as dense
import pytest
import torch
from fast_path import key_of, replay, rows_of
from reference_problem import Problem
from tiny_models import tiny_task

from benchmarks.study.structures import fit_posterior
from benchmarks.study.structures.diagonal import DiagonalPosterior, add_diagonal_batch, no_rows
from laplora.errors import FactorizationError, NonFiniteError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.passes import StructureSettings

PRIORS = {
    "scalar": Prior("scalar", {"all": 0.3}),
    "group": Prior("group", {"lora_A": 3.0, "lora_B": 0.05}),
}

# The curvature is rounded to float32, 6e-8 of each entry; the rest is float64.
STORED = 1e-6
# By levels: an average of errors of either sign over levels of a few parameters, each below 0.47 and most below 0.1;
# seen here 0.034.
LEVELS = 0.06


def fitted(problem: Problem) -> DiagonalPosterior:
    blocks = find_blocks(problem.model, problem.task.classes)
    run_pass = replay(rows_of(problem.model, problem.task, batch_size=7))
    posterior = fit_posterior(StructureSettings("diagonal"), blocks, run_pass)
    assert isinstance(posterior, DiagonalPosterior)
    return posterior


@pytest.mark.parametrize("granularity", ["scalar", "group", "module"])
def test_the_posterior_is_that_of_the_dense_diagonal(problem: Problem, granularity: str) -> None:
    posterior = fitted(problem)
    assert (posterior.structure, posterior.rows) == ("diagonal", 60)
    prior = PRIORS.get(granularity) or Prior("module", {b.name: 0.1 * (1 + i) for i, b in enumerate(posterior.blocks)})
    precisions = block_precisions(prior, posterior.blocks)
    by_block = {key_of(b): float(p) for b, p in zip(posterior.blocks, precisions, strict=True)}
    test = replace(tiny_task(examples=9, seed=99), label_ids=problem.task.label_ids)
    batch = test.batch()
    curvature = {key: torch.diag(torch.diag(ggn)) for key, ggn in problem.truth.ggn.items()}
    full = dense.logit_covariance(dense.jacobians(problem.model, batch, test.label_ids), curvature, by_block)
    q = contrasts(problem.task.classes)
    expected = q.T @ full @ q
    jacobians = contrast_jacobians(problem.model, batch, test.label_ids, posterior.blocks)
    covariance = posterior.covariance_of(jacobians, precisions)
    assert torch.equal(covariance, covariance.mT)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=STORED * float(expected.abs().max()))
    ratio = dense.log_determinant(curvature, by_block)
    assert float(posterior.log_determinant_ratio(precisions)) == pytest.approx(ratio, rel=STORED)
    gamma = posterior.effective_dimension(precisions)
    for i, block in enumerate(posterior.blocks):
        h = curvature[key_of(block)].diagonal()
        assert float(gamma[i]) == pytest.approx(float((h / (h + precisions[i])).sum()), rel=STORED)


@pytest.mark.parametrize("precision", [1e-3, 0.1, 1e6])
def test_levels_give_nearly_the_exact_covariance(problem: Problem, precision: float) -> None:
    """Over nine decades of prior precision, at rows that were not fitted."""
    posterior = fitted(problem)
    precisions = block_precisions(Prior("scalar", {"all": precision}), posterior.blocks)
    test = replace(tiny_task(examples=9, seed=99), label_ids=problem.task.label_ids)
    jacobians = contrast_jacobians(problem.model, test.batch(), test.label_ids, posterior.blocks)
    exact = posterior.covariance_of(jacobians, precisions)
    projected = posterior.project(jacobians)
    by_levels = posterior.covariance(projected, precisions)
    assert projected.rest.shape[-1] < sum(b.wide * b.narrow for b in posterior.blocks) / 2
    assert torch.equal(by_levels, by_levels.mT)
    assert torch.linalg.eigvalsh(by_levels).min() > 0
    torch.testing.assert_close(by_levels, exact, rtol=0, atol=LEVELS * float(exact.abs().max()))


def test_nothing_and_nan_are_refused(problem: Problem) -> None:
    blocks = find_blocks(problem.model, problem.task.classes)
    empty = no_rows(blocks)
    with pytest.raises(FactorizationError, match="no rows"):
        fit_posterior(StructureSettings("diagonal"), blocks, replay([]))
    batch = problem.task.batch([0, 1])
    jacobians = contrast_jacobians(problem.model, batch, problem.task.label_ids, blocks)
    first = replace(jacobians.blocks[0], jacobian=jacobians.blocks[0].jacobian * torch.nan)
    with pytest.raises(NonFiniteError, match=r"q.*proj\.lora_A is not finite"):
        add_diagonal_batch(empty, replace(jacobians, blocks=(first, *jacobians.blocks[1:])), batch.class_mask)
