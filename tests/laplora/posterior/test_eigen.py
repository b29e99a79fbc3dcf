"""Posterior, predictive covariance, log determinant and probabilities against explicit dense matrices."""

from __future__ import annotations

import math

import dense_reference as dense
import pytest
import torch
from fast_path import Fit, basis_by_key, close, dense_curvature_of, fit, key_of
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_problem import held_out
from reference_problem import Problem
from tiny_models import generator

from laplora.jacobians.contrasts import Block, BlockJacobian, ContrastJacobians, contrast_jacobians
from laplora.linearised import contrasts
from laplora.posterior.base import Prior, block_precisions
from laplora.posterior.eigen import EigenPosterior
from laplora.predictive.gaussian import posterior_predictive

PRIOR = Prior("group", {"lora_A": 3.0, "lora_B": 0.05})

# Eigenvectors of two Kronecker factors, each right to 1e-15 / (relative gap, here above 1e-5), and sums of some
# hundred products; relative to the largest covariance.
EXACT = 1e-9


def assert_agree(problem: Problem, found: Fit, bases: dict[dense.Key, dense.Basis]) -> None:
    """Assert that both sides' covariance of the contrasts and log determinant agree, the dense side in ``bases``."""
    state, task = found.posterior, held_out(problem)
    precisions = block_precisions(PRIOR, found.blocks)
    projected = state.project(contrast_jacobians(problem.model, task.batch(), task.label_ids, found.blocks))
    curvature = {
        key: dense.block_curvature(basis, *dense.ekfac(problem.truth.ggn[key], basis)) for key, basis in bases.items()
    }
    prior = {key: PRIOR.precision[f"lora_{key.side}"] for key in curvature}
    full = dense.logit_covariance(dense.jacobians(problem.model, task.batch(), task.label_ids), curvature, prior)
    q = contrasts(problem.task.classes)
    close(state.covariance(projected, precisions), q.T @ full @ q, EXACT)
    expected = dense.log_determinant(curvature, prior)
    assert float(state.log_determinant_ratio(precisions)) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("rank", [1, 4, 1000])
def test_posterior_matches_with_its_own_dense_eigenbasis(problem: Problem, rank: int) -> None:
    """Nothing shared: the dense side finds its eigenvectors itself; truncated ranks have the isotropic tail."""
    found = fit(problem.model, problem.task, batch_size=7, rank=rank)
    bases = {key: dense.eigenbasis(factors, rank) for key, factors in problem.truth.factors.items()}
    assert_agree(problem, found, bases)


@pytest.mark.parametrize("stored_as", [None, torch.bfloat16])
def test_posterior_matches_in_a_sketched_basis(problem: Problem, stored_as: torch.dtype | None) -> None:
    """A sketched or rounded basis is only near the eigenvectors. In that basis, which the second pass used, all is
    exact."""
    found = fit(problem.model, problem.task, batch_size=7, rank=4, sketch=8, stored_as=stored_as)
    assert_agree(problem, found, basis_by_key(found))


@pytest.mark.parametrize("precision", [1e12, math.inf])
def test_infinite_prior_precision_is_map(problem: Problem, precision: float) -> None:
    found = fit(problem.model, problem.task, batch_size=16, rank=4)
    batch = problem.task.batch()
    jacobians = contrast_jacobians(problem.model, batch, problem.task.label_ids, found.blocks)
    projected = found.posterior.project(jacobians)
    precisions = block_precisions(Prior("scalar", {"all": precision}), found.blocks)
    covariance = found.posterior.covariance(projected, precisions)
    predicted = posterior_predictive(projected.contrast_mean, covariance, batch.class_mask)
    # Logit variances are below 100 / precision; the quadrature's own error is 1e-11.
    torch.testing.assert_close(predicted.probs, problem.truth.probs, rtol=0, atol=1e-9)
    assert float(found.posterior.log_determinant_ratio(precisions)) == pytest.approx(0, abs=1e-6)
    if precision == math.inf:
        assert not covariance.any()


def test_probabilities_match_plain_monte_carlo(problem: Problem) -> None:
    """From the model to probabilities of two and of three classes, averaged over samples of the dense Gaussian."""
    found = fit(problem.model, problem.task, batch_size=16, rank=4)
    curvature = dense_curvature_of(found, problem.truth.ggn)
    some = [2, 4, 7]
    batch = problem.task.batch(some)
    assert batch.class_mask.sum(1).tolist() == [3, 2, 3]
    full = dense.logit_covariance(
        {key: j[some] for key, j in problem.truth.jacobians.items()},
        curvature,
        {key: PRIOR.precision[f"lora_{key.side}"] for key in curvature},
    )
    samples = 250_000
    mean, std = dense.monte_carlo_probs(
        problem.truth.logits[some], full, batch.class_mask, samples=samples, generator=generator(0)
    )
    projected = found.posterior.project(contrast_jacobians(problem.model, batch, problem.task.label_ids, found.blocks))
    covariance = found.posterior.covariance(projected, block_precisions(PRIOR, found.blocks))
    predicted = posterior_predictive(projected.contrast_mean, covariance, batch.class_mask, samples=16384)
    # Five standard errors of plain Monte-Carlo, and 1e-4 for the Sobol points' own error.
    error = 5 * std / math.sqrt(samples) + 1e-4
    assert ((predicted.probs - mean).abs() <= error).all()
    # A standard deviation's own standard error is at most about that of the mean of a bounded variable.
    assert ((predicted.std - std).abs() <= error + 1e-3).all()
    assert (predicted.probs[~batch.class_mask] == 0).all()
    moved = (predicted.probs - problem.truth.probs[some]).abs().max()
    assert moved > 0.01, "averaging changed nothing, so this compares MAP with MAP"


def random_state(
    seed: int, *, wide: int, kept: int, classes: int, log_scale: float, inside: float, dtype: torch.dtype
) -> tuple[EigenPosterior, ContrastJacobians]:
    """Return a random one-block posterior and five rows of Jacobians.

    Args:
        kept: columns of the wide basis.
        log_scale: decimal logarithm of the largest curvature.
        inside: share of the Jacobians that lies in the kept span; at 1 nothing is left out.
    """
    draw = generator(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    u, v = torch.linalg.qr(normal(wide, kept)).Q, torch.linalg.qr(normal(3, 3)).Q
    scale = 10 ** (log_scale * torch.rand((kept, 3), generator=draw, dtype=torch.float64))
    tail = torch.rand(3, generator=draw, dtype=torch.float64) * (0 if kept == wide else 1)
    jacobian = normal(5, classes - 1, wide, 3)
    jacobian = inside * (u @ (u.T @ jacobian)) + (1 - inside) * jacobian
    block = Block("m.lora_B", "lora_B", wide, 3)
    state = EigenPosterior((block,), (u.float(),), (v.float(),), (scale.float(),), (tail.float(),), 5, "ekfac")
    empty = torch.zeros(0)
    blocks = (BlockJacobian(jacobian.to(dtype), empty, empty),)
    return state, ContrastJacobians(torch.zeros((5, classes), dtype=dtype), empty, blocks)


def dense_one_block(state: EigenPosterior, jacobians: ContrastJacobians, precision: float) -> torch.Tensor:
    """Return the covariance of the contrasts by explicit inverse, in float64, its basis made orthonormal again."""
    basis = dense.Basis(torch.linalg.qr(state.wide[0].double()).Q, torch.linalg.qr(state.narrow[0].double()).Q)
    key = key_of(state.blocks[0])
    curvature = dense.block_curvature(basis, state.scale[0].double(), state.tail[0].double())
    return dense.logit_covariance({key: jacobians.blocks[0].jacobian.double()}, {key: curvature}, {key: precision})


@given(
    seed=st.integers(0, 2**31),
    wide=st.integers(2, 12),
    kept=st.integers(1, 12),
    classes=st.integers(2, 5),
    log_scale=st.floats(-3, 8),
    log_precision=st.floats(-4, 6),
    inside=st.sampled_from([0.0, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_covariance_is_symmetric_psd_and_right(
    seed: int,
    wide: int,
    kept: int,
    classes: int,
    log_scale: float,
    log_precision: float,
    inside: float,
    dtype: torch.dtype,
) -> None:
    """Whatever the spread of curvatures, and also where the Jacobians lie in the kept span and nothing is left out."""
    kept, precision = min(kept, wide), 10**log_precision
    state, jacobians = random_state(
        seed, wide=wide, kept=kept, classes=classes, log_scale=log_scale, inside=inside, dtype=dtype
    )
    projected = state.project(jacobians)
    found = state.covariance(projected, torch.tensor([precision]).double())
    assert torch.equal(found, found.mT)
    expected = dense_one_block(state, jacobians, precision)
    largest = torch.linalg.eigvalsh(expected)[:, -1]
    # float32 Jacobians and basis: the parts of a sum of up to 36 squares of size |J|^2 are off by 1e-7 of it, and
    # at worst carry the weight of the softest direction.
    softest = precision + min(float(state.scale[0].min()), float(state.tail[0].min()) if kept < wide else math.inf)
    rounding = 1e-5 * jacobians.blocks[0].jacobian.double().square().sum((1, 2, 3)) / softest
    assert (torch.linalg.eigvalsh(found)[:, 0] >= -1e-6 * largest).all()
    assert ((found - expected).abs().amax((1, 2)) <= rounding + 1e-9 * largest).all()
