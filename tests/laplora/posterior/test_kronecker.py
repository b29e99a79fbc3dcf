"""KFAC-reduce factors, their sketch, and the EKFAC scales against dense matrices."""

from __future__ import annotations

import dense_reference as dense
import pytest
import torch
from fast_path import basis_by_key, by_key, close, fit
from reference_problem import Problem
from tiny_models import generator, tiny_model, tiny_task

from laplora.posterior.kronecker import kfac_posterior

# Sums over 60 float64 outer products in another order, relative to the largest entry.
ROUNDING = 1e-11


def test_full_rank_factors_match(problem: Problem) -> None:
    found = fit(problem.model, problem.task, batch_size=7)
    for key, basis in by_key(found.bases, found.blocks).items():
        factors = problem.truth.factors[key]
        close((basis.wide * basis.wide_eigenvalues) @ basis.wide.T, factors.large)
        close((basis.narrow * basis.narrow_eigenvalues) @ basis.narrow.T, factors.small)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_factors_do_not_depend_on_batching_or_order(problem: Problem, batch_size: int) -> None:
    """No 1/batch-size scale, no dropped partial batch (60 = 8 x 7 + 4), no padding counted as data."""
    order = torch.randperm(60, generator=generator(1)).tolist()
    whole = fit(problem.model, problem.task, batch_size=60, sketch=10, rank=4)
    other = fit(problem.model, problem.task, batch_size=batch_size, order=order, sketch=10, rank=4)
    assert whole.sums.rows == other.sums.rows == 60
    for a, b in zip(whole.sums.wide + whole.sums.narrow, other.sums.wide + other.sums.narrow, strict=True):
        close(b, a)
    for i, scale in enumerate(whole.eigen_sums.scale):
        total = scale.sum() + whole.eigen_sums.rest[i].sum()
        close(other.eigen_sums.scale[i].sum() + other.eigen_sums.rest[i].sum(), total)


@pytest.mark.parametrize("rank", [2, 1000])
def test_kfac_is_the_product_of_the_factors_and_keeps_its_trace(problem: Problem, rank: int) -> None:
    found = fit(problem.model, problem.task, batch_size=7, rank=rank)
    posterior = kfac_posterior(found.blocks, found.bases, 60, "kfac_reduce")
    for i, (key, basis) in enumerate(basis_by_key(found).items()):
        product = dense.kron(problem.truth.factors[key].large, problem.truth.factors[key].small)
        curvature = dense.block_curvature(basis, posterior.scale[i], posterior.tail[i])
        close(curvature.trace(), product.trace())
        if rank == 1000:
            # Eigenvectors are right to the shift that keeps the sketch's Cholesky factor stable, near 1e-15.
            close(curvature, product, 1e-10)


def test_sketch_finds_a_low_rank_factor_exactly() -> None:
    """Three rows of one token give factors of rank 3 or less; a sketch of 6 columns holds all of them."""
    model, task = tiny_model("llama", hidden=32), tiny_task(examples=3, classes=2)
    found = fit(model, task, batch_size=2, rank=3, sketch=6)
    expected = dense.kfac_reduce(model, task.batch(), task.label_ids)
    for key, basis in by_key(found.bases, found.blocks).items():
        # The shift that keeps Nystrom's Cholesky factor stable moves eigenvalues by sqrt(32) x 2e-16 x |A|, and
        # eigenvectors of the random test matrix's worst direction some hundred times more.
        close((basis.wide * basis.wide_eigenvalues) @ basis.wide.T, expected[key].large, 1e-9)


@pytest.mark.parametrize("rank", [1, 4, 1000])
def test_ekfac_scales_match_the_dense_ggn(problem: Problem, rank: int) -> None:
    """Given the same basis: the scales are the GGN's diagonal, and each block keeps the GGN's trace."""
    found = fit(problem.model, problem.task, batch_size=7, rank=rank, sketch=12 if rank < 1000 else 1000)
    for i, (key, basis) in enumerate(basis_by_key(found).items()):
        s, tau = dense.ekfac(problem.truth.ggn[key], basis)
        scale, tail = found.posterior.scale[i], found.posterior.tail[i]
        large, k = basis.u.shape
        trace = torch.trace(problem.truth.ggn[key])
        close(scale, s)
        # A difference of two sums: rounding relative to the sums.
        torch.testing.assert_close(tail, tau, rtol=0, atol=ROUNDING * float(trace))
        close(scale.sum() + (large - k) * tail.sum(), trace)


def test_curvature_with_a_class_near_zero_matches() -> None:
    """Through a whole fit: Phi's lm_head has a bias, which puts one of six logits at -60."""
    model, task = tiny_model("phi"), tiny_task(examples=12, classes=6)
    with torch.no_grad():
        model.get_base_model().lm_head.base_layer.bias[task.label_ids[1]] = -60.0
    truth = dense.truth(model, task.batch(), task.label_ids)
    assert truth.probs[:, 1].max() < 1e-20
    found = fit(model, task, batch_size=5)
    for i, (key, basis) in enumerate(basis_by_key(found).items()):
        close(found.posterior.scale[i], dense.ekfac(truth.ggn[key], basis)[0])
