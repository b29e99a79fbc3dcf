"""The joint posteriors against explicit matrices over all parameters together."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from dense_reference import Problem
from fast_path import rows_of
from joint_problem import dense_curvature, dense_ggn, fit_joint, flat_jacobians, held_out, parameter_precisions
from tiny_models import generator

from laplora.errors import NonFiniteError, PriorError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.joint import JointPosterior, build_joint_posterior

# Relative to the largest covariance. Both sides factorise matrices of condition up to 1e6; seen: 1e-12.
EXACT = 1e-9
#: Weak, strong, and one per group, either way round.
PRIORS = {
    "weak": Prior("scalar", {"all": 0.02}),
    "strong": Prior("scalar", {"all": 30.0}),
    "group": Prior("group", {"lora_A": 3.0, "lora_B": 0.05}),
    "other group": Prior("group", {"lora_A": 0.1, "lora_B": 20.0}),
}
_FITTED: dict[tuple[Any, ...], JointPosterior] = {}


def fitted(problem: Problem, joint_rank: int = 130, rank: int = 1000) -> JointPosterior:
    key = (problem.model, joint_rank, rank)
    if key not in _FITTED:
        blocks = find_blocks(problem.model, problem.task.classes)
        rows = rows_of(problem.model, problem.task, batch_size=16)
        _FITTED[key] = fit_joint(blocks, rows, joint_rank, rank=rank)
    return _FITTED[key]


def assert_matches(problem: Problem, found: JointPosterior, curvature: torch.Tensor, prior: Prior) -> None:
    """Assert that covariance, log determinant and effective dimensions are those of a dense curvature."""
    precisions = block_precisions(prior, found.blocks)
    diagonal = parameter_precisions(precisions, found.blocks)
    covariance = torch.linalg.inv(curvature + diagonal.diag())
    task = held_out(problem)
    jacobians = flat_jacobians(problem, found.blocks, task)
    expected = jacobians @ covariance @ jacobians.mT
    projected = found.project(contrast_jacobians(problem.model, task.batch(), task.label_ids, found.blocks))
    got = found.covariance(projected, precisions)
    assert torch.equal(got, got.mT)
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT * float(expected.abs().max()))
    relative = torch.eye(len(diagonal), dtype=torch.float64) + curvature / diagonal.sqrt() / diagonal.sqrt()[:, None]
    assert float(found.log_determinant_ratio(precisions)) == pytest.approx(float(torch.logdet(relative)), rel=EXACT)
    parts = (curvature @ covariance).diagonal().split([b.wide * b.narrow for b in found.blocks])
    gamma = torch.stack([part.sum() for part in parts])
    torch.testing.assert_close(found.effective_dimension(precisions), gamma, rtol=0, atol=EXACT * float(gamma.sum()))


@pytest.mark.parametrize("prior", PRIORS)
def test_with_nothing_left_out_it_is_the_exact_posterior(problem: Problem, prior: str) -> None:
    found = fitted(problem)
    assert (found.structure, found.rows) == ("joint_core", 60)
    assert_matches(problem, found, dense_ggn(problem, found.blocks), PRIORS[prior])


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("rank", [1000, 4])
def test_with_few_directions_it_is_the_posterior_of_their_curvature(problem: Problem, rank: int, prior: str) -> None:
    """The rest of the space keeps the prior's variance, inside and outside the Kronecker bases."""
    found = fitted(problem, 7, rank)
    assert found.factor.shape[0] == 7
    curvature = dense_curvature(found)
    assert torch.linalg.matrix_rank(curvature) == 7
    assert_matches(problem, found, curvature, PRIORS[prior])


def test_a_posterior_over_one_group_or_over_few_parameters(problem: Problem) -> None:
    """More rows than parameters: the exact posterior's square is then that of the parameters."""
    every = find_blocks(problem.model, problem.task.classes)
    for blocks in (tuple(b for b in every if b.group == "lora_B"), every[-1:]):
        rows = rows_of(problem.model, problem.task, batch_size=16, blocks=blocks)
        found = fit_joint(blocks, rows)
        assert_matches(problem, found, dense_ggn(problem, blocks), Prior("group", {"lora_B": 0.3}))
    assert found.factor.shape == (9, 9)


def test_a_precision_per_block_is_refused(problem: Problem) -> None:
    found = fitted(problem, 7)
    batch = problem.task.batch([0, 1])
    jacobians = contrast_jacobians(problem.model, batch, problem.task.label_ids, found.blocks)
    precisions = torch.arange(1.0, 1 + len(found.blocks), dtype=torch.float64)
    for figure in (partial(found.covariance_of, jacobians), found.log_determinant_ratio, found.effective_dimension):
        with pytest.raises(PriorError, match="choose a scalar or group prior"):
            figure(precisions)
    # And a curvature that drowns the prior.
    posterior = replace(found, factor=torch.full_like(found.factor, 1e12))
    with pytest.raises(NonFiniteError, match="too large for the prior"):
        posterior.log_determinant_ratio(torch.full((len(posterior.blocks),), 1e-6, dtype=torch.float64))


def test_infinite_precision_is_map(problem: Problem) -> None:
    found = fitted(problem, 7)
    batch = problem.task.batch()
    projected = found.project(contrast_jacobians(problem.model, batch, problem.task.label_ids, found.blocks))
    one_group = block_precisions(Prior("group", {"lora_A": math.inf, "lora_B": 1.0}), found.blocks)
    assert found.covariance(projected, one_group).isfinite().all()
    assert not found.effective_dimension(one_group)[one_group == math.inf].any()
    everywhere = block_precisions(Prior("scalar", {"all": math.inf}), found.blocks)
    assert not found.covariance(projected, everywhere).any()
    assert not found.effective_dimension(everywhere).any()
    assert float(found.log_determinant_ratio(everywhere)) == 0


def random_posterior(
    draw: torch.Generator, dtype: torch.dtype
) -> tuple[JointPosterior, ContrastJacobians, torch.Tensor]:
    """Return a random posterior over three blocks of two groups, four rows of Jacobians, and these as one matrix.

    Curvatures spread over up to eight decades. Of the Jacobians none, nine tenths or all is in the span of their
    directions.
    """

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    rank, inside = (int(torch.randint(0, most, (), generator=draw)) for most in (12, 3))
    blocks = (Block("m.lora_A", "lora_A", 6, 2), Block("m.lora_B", "lora_B", 5, 2), Block("n.lora_A", "lora_A", 4, 2))
    kept = [3, 5, 2]
    wide = [torch.linalg.qr(normal(b.wide, k)).Q for b, k in zip(blocks, kept, strict=True)]
    narrow = [torch.linalg.qr(normal(2, 2)).Q for _ in blocks]
    spread = 4 * torch.rand((), generator=draw, dtype=torch.float64)
    scale = 10 ** (spread * torch.rand(rank + 1, 1, generator=draw, dtype=torch.float64))
    parts = [scale * normal(rank + 1, 2 * k) for k in kept]
    options = {"rows": 4, "direction_dtype": torch.float64, "wide": wide, "narrow": narrow}
    found = build_joint_posterior(blocks, parts, **options).to("cpu", dtype)
    span = torch.linalg.eigh(dense_curvature(found)).eigenvectors[:, -rank - 1 :]
    flat, share = normal(4, 3, 30), (0.0, 0.9, 1.0)[inside]
    flat = (share * flat @ span @ span.T + (1 - share) * flat).to(dtype)
    columns = zip(flat.split([2 * b.wide for b in blocks], 2), blocks, strict=True)
    jacobians = tuple(BlockJacobian(p.unflatten(2, (b.wide, 2))) for p, b in columns)
    return found, ContrastJacobians(torch.zeros(4, 4, dtype=dtype), torch.zeros(0), jacobians), flat.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_covariance_is_symmetric_psd_and_below_the_prior(dtype: torch.dtype) -> None:
    """Whatever the spread of curvatures, and also where the Jacobians lie in the span and the variance nearly 0."""
    # float32 coordinates are off by 1e-7 of the gradient: with the weight of the prior, 1e-6 of its variance is safe.
    rounding = 1e-6 if dtype == torch.float32 else 1e-12
    for seed in range(40):
        draw = generator(seed)
        found, jacobians, flat = random_posterior(draw, dtype)
        a, b = (10 ** (11 * torch.rand(2, generator=draw, dtype=torch.float64) - 5)).tolist()
        precisions = block_precisions(Prior("group", {"lora_A": a, "lora_B": b if seed % 2 else a}), found.blocks)
        got = found.covariance_of(jacobians, precisions)
        assert torch.equal(got, got.mT)
        diagonal = parameter_precisions(precisions, found.blocks)
        before = flat / diagonal @ flat.mT
        largest = torch.linalg.eigvalsh(before)[:, -1]
        assert (torch.linalg.eigvalsh(got)[:, 0] >= -1e-12 * largest).all(), seed
        assert (torch.linalg.eigvalsh(before - got)[:, 0] >= -rounding * largest).all(), seed
        if dtype == torch.float64:
            expected = flat @ torch.linalg.inv(dense_curvature(found) + diagonal.diag()) @ flat.mT
            # The dense inverse itself is right to 1e-16 times the condition of what it inverts.
            condition = (diagonal.max() + float(found.factor.square().sum())) / diagonal.min()
            error = 1e-14 * condition * torch.linalg.eigvalsh(expected)[:, -1] + 1e-13 * largest
            assert ((got - expected).abs().amax((1, 2)) <= error).all(), seed
