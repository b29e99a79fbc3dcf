"""Posterior, predictive covariance, log determinant and probabilities against explicit dense matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import dense_reference as dense
import pytest
import torch
from fast_path import Fit, basis_by_key, close, dense_curvature_of, fit, key_of
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_problem import Problem
from tiny_models import ARCHITECTURES, Architecture, generator, tiny_model, tiny_task

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
    state = found.posterior
    test = tiny_task(examples=9, seed=99)
    test = replace(test, label_ids=problem.task.label_ids)
    batch = test.batch()
    precisions = block_precisions(PRIOR, found.blocks)
    projected = state.project(contrast_jacobians(problem.model, batch, test.label_ids, found.blocks))
    curvature = {
        key: dense.block_curvature(basis, *dense.ekfac(problem.truth.ggn[key], basis)) for key, basis in bases.items()
    }
    prior = {key: PRIOR.precision[f"lora_{key.side}"] for key in curvature}
    full = dense.logit_covariance(dense.jacobians(problem.model, batch, test.label_ids), curvature, prior)
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


@pytest.mark.parametrize("stored_as", [None, torch.float32, torch.bfloat16])
def test_posterior_matches_in_a_sketched_basis(problem: Problem, stored_as: torch.dtype | None) -> None:
    """A sketch smaller than the factor is only near its eigenvectors, and so is a rounded basis. In that basis, which
    the second pass used, all is exact."""
    found = fit(problem.model, problem.task, batch_size=7, rank=4, sketch=8, stored_as=stored_as)
    assert_agree(problem, found, basis_by_key(found))


def test_rows_with_fewer_classes_match(problem: Problem) -> None:
    """What such a row's softmax sees, the centred covariance of its possible classes, equals the dense one."""
    found = fit(problem.model, problem.task, batch_size=16)
    batch = problem.task.batch()
    state = found.posterior
    projected = state.project(contrast_jacobians(problem.model, batch, problem.task.label_ids, found.blocks))
    covariance = state.covariance(projected, block_precisions(PRIOR, found.blocks))
    curvature = dense_curvature_of(found, problem.truth.ggn)
    prior = {key: PRIOR.precision[f"lora_{key.side}"] for key in curvature}
    full = dense.logit_covariance(problem.truth.jacobians, curvature, prior)
    seen = dense.centring(batch.class_mask)
    q = contrasts(3)
    expected = seen @ full @ seen
    assert not batch.class_mask.all()
    torch.testing.assert_close(
        seen @ (q @ covariance @ q.T) @ seen, expected, rtol=0, atol=EXACT * float(expected.abs().max())
    )
    few = ~batch.class_mask[:, 2]
    pair = contrasts(2)
    torch.testing.assert_close(
        pair @ covariance[few][:, :1, :1] @ pair.T,
        expected[few][:, :2, :2],
        rtol=0,
        atol=EXACT * float(expected.abs().max()),
    )


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_match_plain_monte_carlo(architecture: Architecture, classes: int) -> None:
    """From the model to probabilities, averaged over a million samples of the dense Gaussian."""
    model = tiny_model(architecture)
    task = tiny_task(examples=20, classes=classes)
    truth = dense.truth(model, task.batch(), task.label_ids)
    found = fit(model, task, batch_size=6, rank=4)
    curvature = dense_curvature_of(found, truth.ggn)
    some = [2, 4, 7]
    batch = task.batch(some)
    full = dense.logit_covariance(
        {key: j[some] for key, j in truth.jacobians.items()},
        curvature,
        {key: PRIOR.precision[f"lora_{key.side}"] for key in curvature},
    )
    samples = 1_000_000
    mean, std = dense.monte_carlo_probs(
        truth.logits[some], full, batch.class_mask, samples=samples, generator=generator(0)
    )
    projected = found.posterior.project(contrast_jacobians(model, batch, task.label_ids, found.blocks))
    covariance = found.posterior.covariance(projected, block_precisions(PRIOR, found.blocks))
    predicted = posterior_predictive(projected.contrast_mean, covariance, batch.class_mask, samples=16384)
    # Five standard errors of plain Monte-Carlo, and 1e-4 for the Sobol points' own error.
    error = 5 * std / math.sqrt(samples) + 1e-4
    assert ((predicted.probs - mean).abs() <= error).all()
    # A standard deviation's own standard error is at most about that of the mean of a bounded variable.
    assert ((predicted.std - std).abs() <= error + 1e-3).all()
    assert (predicted.probs[~batch.class_mask] == 0).all()
    torch.testing.assert_close(predicted.probs.sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-12)
    moved = (predicted.probs - truth.probs[some]).abs().max()
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

    narrow_count = 3
    u = torch.linalg.qr(normal(wide, kept)).Q
    v = torch.linalg.qr(normal(narrow_count, narrow_count)).Q
    block = Block("m.lora_B", "lora_B", wide, narrow_count)
    scale = 10 ** (log_scale * torch.rand((kept, narrow_count), generator=draw, dtype=torch.float64))
    tail = torch.rand(narrow_count, generator=draw, dtype=torch.float64) * (0 if kept == wide else 1)
    jacobian = normal(5, classes - 1, wide, narrow_count)
    jacobian = inside * (u @ (u.T @ jacobian)) + (1 - inside) * jacobian
    state = EigenPosterior((block,), (u.float(),), (v.float(),), (scale.float(),), (tail.float(),), rows=5)
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
    state, jacobians = random_state(
        seed,
        wide=wide,
        kept=min(kept, wide),
        classes=classes,
        log_scale=log_scale,
        inside=inside,
        dtype=dtype,
    )
    precision = 10**log_precision
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


@given(seed=st.integers(0, 2**31), low=st.floats(-3, 3), step=st.floats(0.01, 3))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_covariance_and_log_determinant_fall_with_the_prior_precision(seed: int, low: float, step: float) -> None:
    state, jacobians = random_state(seed, wide=8, kept=3, classes=4, log_scale=2.0, inside=0.5, dtype=torch.float64)
    projected = state.project(jacobians)
    loose, tight = (torch.tensor([10**p]).double() for p in (low, low + step))
    gap = state.covariance(projected, loose) - state.covariance(projected, tight)
    # Rounding of the float32 basis, relative to the looser covariance.
    scale = state.covariance(projected, loose).abs().max()
    assert torch.linalg.eigvalsh(gap).min() >= -1e-6 * scale
    assert state.log_determinant_ratio(loose) > state.log_determinant_ratio(tight)
