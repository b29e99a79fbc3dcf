"""KFAC-reduce factors, their sketch, and the EKFAC scales against dense matrices."""

from __future__ import annotations

import dense_reference as dense
import pytest
import torch
from fast_path import basis_by_key, by_key, fit
from reference_problem import Problem
from tiny_models import generator, tiny_model, tiny_task

from laplora.errors import FactorizationError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.linearised import contrasts
from laplora.posterior import curvature

# Sums over 60 float64 outer products in another order, relative to the largest entry.
ROUNDING = 1e-11


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = ROUNDING) -> None:
    """Assert agreement relative to the largest entry: small entries of a matrix carry its large ones' rounding."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1e-300))


def test_full_rank_factors_match(problem: Problem) -> None:
    found = fit(problem.model, problem.task, batch_size=7)
    for key, basis in by_key(found.bases, found.blocks).items():
        factors = problem.truth.factors[key]
        close((basis.wide * basis.wide_eigenvalues) @ basis.wide.T, factors.large)
        close((basis.narrow * basis.narrow_eigenvalues) @ basis.narrow.T, factors.small)
        assert basis.wide.shape == factors.large.shape
        close(basis.wide.T @ basis.wide, torch.eye(len(basis.wide), dtype=torch.float64))


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_factors_do_not_depend_on_batching_or_order(problem: Problem, batch_size: int) -> None:
    """No 1/batch-size scale, no dropped partial batch (60 = 8 x 7 + 4), no padding counted as data."""
    order = torch.randperm(60, generator=generator(1)).tolist()
    whole = fit(problem.model, problem.task, batch_size=60, sketch=10, rank=4)
    other = fit(problem.model, problem.task, batch_size=batch_size, order=order, sketch=10, rank=4)
    assert whole.sums.rows == other.sums.rows == 60
    for a, b in zip(whole.sums.wide + whole.sums.narrow, other.sums.wide + other.sums.narrow, strict=True):
        close(b, a)
    for a, b in zip(whole.bases, other.bases, strict=True):
        # Projectors, as eigenvectors have arbitrary signs. A gap of 1e-3 of the largest eigenvalue, inverted.
        close(b.wide @ b.wide.T, a.wide @ a.wide.T, 1e-8)
    for a, b in zip(traces(whole.eigen_sums), traces(other.eigen_sums), strict=True):
        close(b, a)


def traces(sums: curvature.EigenSums) -> list[torch.Tensor]:
    return [scale.sum() + rest.sum() for scale, rest in zip(sums.scale, sums.rest, strict=True)]


def test_halves_merge_to_one_pass(problem: Problem) -> None:
    model, task = problem.model, problem.task
    blocks = find_blocks(model, task.classes)
    halves = []
    for indices in (range(25), range(25, 60)):
        batch = task.batch(list(indices))
        found = contrast_jacobians(model, batch, task.label_ids, blocks)
        empty = curvature.empty_sums(blocks, sketch_columns=10, seed=0)
        halves.append(curvature.add_batch(empty, found, batch.class_mask))
    merged = curvature.merge_sums(*halves)
    whole = fit(model, task, batch_size=60, sketch=10, rank=4)
    assert merged.rows == 60
    for a, b in zip(merged.wide + merged.narrow, whole.sums.wide + whole.sums.narrow, strict=True):
        close(a, b)
    eigen = []
    for indices in (range(25), range(25, 60)):
        batch = task.batch(list(indices))
        found = contrast_jacobians(model, batch, task.label_ids, blocks)
        empty_eigen = curvature.empty_eigen_sums(whole.bases)
        eigen.append(curvature.add_eigen_batch(empty_eigen, found, whole.bases, batch.class_mask))
    merged_eigen = curvature.merge_eigen_sums(*eigen)
    for a, b in zip(
        merged_eigen.scale + merged_eigen.rest, whole.eigen_sums.scale + whole.eigen_sums.rest, strict=True
    ):
        close(a, b)


def test_sketches_of_other_seeds_do_not_merge(problem: Problem) -> None:
    blocks = find_blocks(problem.model, 3)
    first = curvature.empty_sums(blocks, sketch_columns=10, seed=0)
    for other in (
        curvature.empty_sums(blocks, sketch_columns=10, seed=1),
        curvature.empty_sums(blocks, sketch_columns=11, seed=0),
        curvature.empty_sums(blocks[1:], sketch_columns=10, seed=0),
        curvature.empty_sums(blocks, sketch_columns=10, seed=0, kind="last"),
    ):
        with pytest.raises(FactorizationError):
            curvature.merge_sums(first, other)


def test_sketch_finds_a_low_rank_factor_exactly() -> None:
    """Three rows of one token give factors of rank 3 or less; a sketch of 6 columns holds all of them."""
    model = tiny_model("llama", hidden=32)
    task = tiny_task(examples=3, classes=2)
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
    scales = by_key(found.eigen_sums.scale, found.blocks)
    rests = by_key(found.eigen_sums.rest, found.blocks)
    tails = by_key(found.posterior.tail, found.blocks)
    for key, basis in basis_by_key(found).items():
        s, tau = dense.ekfac(problem.truth.ggn[key], basis)
        close(scales[key], s)
        large, k = basis.u.shape
        trace = torch.trace(problem.truth.ggn[key])
        close(scales[key].sum() + rests[key].sum(), trace)
        # A difference of two sums: rounding relative to the sums.
        torch.testing.assert_close(tails[key], tau, rtol=0, atol=ROUNDING * float(trace))
        close(by_key(found.posterior.scale, found.blocks)[key].sum() + (large - k) * tails[key].sum(), trace)


def test_ekfac_is_nearer_to_the_ggn_than_kfac(problem: Problem) -> None:
    """Of all diagonals in a basis the GGN's own diagonal is nearest in Frobenius norm (George et al., section 3)."""
    found = fit(problem.model, problem.task, batch_size=20)
    for i, (key, basis) in enumerate(basis_by_key(found).items()):
        ggn = problem.truth.ggn[key]
        eigen = found.bases[i]
        kfac = dense.block_curvature(
            basis, torch.outer(eigen.wide_eigenvalues, eigen.narrow_eigenvalues), torch.zeros(len(basis.v)).double()
        )
        ekfac = dense.block_curvature(basis, found.eigen_sums.scale[i], torch.zeros(len(basis.v)).double())
        assert (ekfac - ggn).norm() <= (kfac - ggn).norm() * (1 + ROUNDING)


def test_hessian_uses_one_softmax_and_survives_vanishing_classes() -> None:
    """Six classes, one at a logit of -60 and one impossible: exact where a Cholesky factor of it would fail."""
    logits = torch.tensor([[0.3, -60.0, 1.0, -0.4, 2.0, 5.0], [80.0, 0.0, -3.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 5 + [False], [True] * 6])
    probs = dense.masked_probs(logits, mask)
    q = contrasts(6)
    expected = q.T @ dense.softmax_hessian(probs) @ q
    found = curvature.contrast_hessian(logits, mask)
    # Rounding of a 6 x 6 product of numbers below 1.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    twice = q.T @ dense.softmax_hessian(dense.masked_probs(probs, mask)) @ q
    assert (found - twice).abs().max() > 0.05
    assert torch.linalg.eigvalsh(found).min() > -1e-15


def test_curvature_with_a_class_near_zero_matches() -> None:
    """The same through a whole fit: Phi's lm_head has a bias, which puts one of six logits at -60."""
    model = tiny_model("phi")
    task = tiny_task(examples=12, classes=6)
    with torch.no_grad():
        model.get_base_model().lm_head.base_layer.bias[task.label_ids[1]] = -60.0
    truth = dense.truth(model, task.batch(), task.label_ids)
    assert truth.probs[:, 1].max() < 1e-20
    found = fit(model, task, batch_size=5)
    for key, basis in basis_by_key(found).items():
        s, _ = dense.ekfac(truth.ggn[key], basis)
        close(by_key(found.eigen_sums.scale, found.blocks)[key], s)
        assert torch.isfinite(by_key(found.posterior.scale, found.blocks)[key]).all()
