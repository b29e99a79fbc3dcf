"""The two passes of the default posterior: bases from second moments, and the sketch of the core."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from fast_path import Rows, replay, rows_of
from joint_problem import covariance, dense_curvature, dense_ggn, fit_joint
from reference_problem import Problem
from tiny_models import tiny_model, tiny_task

from laplora.errors import FactorizationError, NonFiniteError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.joint_core import (
    LARGEST_SHARE,
    MomentSums,
    add_moment_batch,
    empty_moments,
    empty_sketch,
    joint_from_sketch,
    joint_test_matrix,
    moment_bases,
    shared_ranks,
)
from laplora.posterior.sketch import nystrom_factor


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, tuple[Block, ...]]:
    """A model, 24 rows of three classes, and its blocks."""
    model, task = tiny_model("llama"), tiny_task()
    return model, task, find_blocks(model, 3)


def moments(
    blocks: tuple[Block, ...], batches: list[Rows], rank: int = 1, oversampling: int = 2, seed: int = 5
) -> MomentSums:
    empty = empty_moments(blocks, rank=rank, oversampling=oversampling, seed=seed)
    found = replay(batches)("", empty, add_moment_batch)
    assert isinstance(found, MomentSums)
    return found


def test_moments_are_the_partial_traces_of_the_dense_ggn(problem: Problem) -> None:
    blocks = find_blocks(problem.model, problem.task.classes)
    got = moments(blocks, rows_of(problem.model, problem.task, batch_size=16), rank=1000)
    assert got.rows == 60
    ggn, start = dense_ggn(problem, blocks), 0
    for i, block in enumerate(blocks):
        end = start + block.wide * block.narrow
        own = ggn[start:end, start:end].reshape(block.wide, block.narrow, block.wide, block.narrow)
        wide, narrow = torch.einsum("wkvk->wv", own), torch.einsum("wkwl->kl", own)
        # At this rank the sketch's test matrix is the identity.
        torch.testing.assert_close(got.wide[i], wide, rtol=0, atol=1e-9 * float(wide.abs().max()))
        torch.testing.assert_close(got.narrow[i], narrow, rtol=0, atol=1e-9 * float(narrow.abs().max()))
        start = end


def test_a_sketch_finds_the_leading_eigenvectors(tiny: Any) -> None:
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=8)
    whole = moments(blocks, rows, rank=1000)
    bases = moment_bases(moments(blocks, rows, rank=2, oversampling=8), 2)
    assert any(s.shape[1] < s.shape[0] for s in moments(blocks, rows, rank=1).wide), "nothing was sketched"
    for full, basis in zip(whole.wide, bases, strict=True):
        kept = basis.wide.shape[1]
        values = torch.linalg.eigvalsh(full).flip(0)
        best, got = float(values[:kept].sum()), float((basis.wide.T @ full @ basis.wide).trace())
        assert got == pytest.approx(best, rel=1e-3)
        torch.testing.assert_close(basis.wide.T @ basis.wide, torch.eye(kept, dtype=torch.float64))


def test_the_rank_is_shared_by_what_each_direction_is_worth(tiny: Any) -> None:
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=8)
    bases = moment_bases(moments(blocks, rows, rank=2, oversampling=8), 2)
    counts = [b.wide.shape[1] for b in bases]
    assert sum(counts) == 2 * len(blocks)
    assert 1 <= min(counts) < 2 < max(counts) <= LARGEST_SHARE * 2
    # The sketch is whole at this rank, so the eigenvalues are exact.
    everything = [torch.linalg.eigvalsh(w).flip(0) for w in moments(blocks, rows, rank=1000).wide]
    smallest_kept = min(float(v[n - 1]) for v, n in zip(everything, counts, strict=True) if n > 1)
    largest_left = max(float(v[n]) for v, n in zip(everything, counts, strict=True) if n < min(len(v), 8))
    assert smallest_kept >= largest_left * (1 - 1e-3)


def test_shared_ranks_by_hand() -> None:
    values = [torch.tensor([9.0, 8.0, 1.0]), torch.tensor([0.5, 0.4]), torch.tensor([7.0, 0.6, 0.0])]
    assert shared_ranks(values, 5) == [3, 1, 1]
    assert shared_ranks(values, 6) == [3, 1, 2]
    assert shared_ranks(values, 3) == [1, 1, 1]
    assert shared_ranks(values, 1) == [1, 1, 1], "every block keeps one"
    assert shared_ranks(values, 100) == [3, 2, 3]


def test_what_cannot_be_used_is_refused(tiny: Any) -> None:
    model, task, blocks = tiny
    with pytest.raises(FactorizationError, match="no rows"):
        moment_bases(empty_moments(blocks, rank=1, oversampling=2, seed=0), 1)
    with pytest.raises(FactorizationError, match="no rows"):
        joint_from_sketch(empty_sketch(blocks, columns=4, seed=0), 2, torch.float32)
    rows = rows_of(model, task, batch_size=24)[0]
    part = rows.jacobians.blocks[1]
    spoilt = part.jacobian.clone()
    spoilt[3, 0, 0, 0] = torch.nan
    parts = (rows.jacobians.blocks[0], replace(part, jacobian=spoilt), *rows.jacobians.blocks[2:])
    with pytest.raises(NonFiniteError, match=blocks[1].name):
        moments(blocks, [replace(rows, jacobians=replace(rows.jacobians, blocks=parts))])


def test_few_vectors_in_all_hold_most_of_the_curvature(problem: Problem) -> None:
    """A core in 2 vectors a block keeps more of the GGN's trace than any 2 in every block could."""
    blocks = find_blocks(problem.model, problem.task.classes)
    rows = rows_of(problem.model, problem.task, batch_size=16)
    core = fit_joint(blocks, rows, "joint_core", joint_rank=130, rank=2)
    ggn = dense_ggn(problem, blocks)
    kept = float(core.factor.square().sum())
    best_even, start = 0.0, 0
    for block in blocks:
        end = start + block.wide * block.narrow
        own = ggn[start:end, start:end].reshape(block.wide, block.narrow, block.wide, block.narrow)
        best_even += float(torch.linalg.eigvalsh(torch.einsum("wkvk->wv", own))[-2:].sum())
        start = end
    assert best_even * (1 - 1e-3) < kept <= float(ggn.trace()) * (1 + 1e-9)


def test_the_test_matrix_depends_on_name_and_seed_only(tiny: Any) -> None:
    _, _, blocks = tiny
    state = empty_sketch(blocks, columns=5, seed=7)
    first = joint_test_matrix(state, 2)
    assert torch.equal(first, joint_test_matrix(empty_sketch(blocks[2:], columns=5, seed=7), 0))
    assert not torch.equal(first, joint_test_matrix(empty_sketch(blocks, columns=5, seed=8), 2))
    assert not torch.equal(first, joint_test_matrix(state, 4))
    # As many columns as there are parameters: the identity, whose sketch is the curvature itself.
    whole = empty_sketch(blocks, columns=10_000, seed=7)
    joined = torch.cat([joint_test_matrix(whole, i) for i in range(len(blocks))])
    assert torch.equal(joined, torch.eye(sum(b.wide * b.narrow for b in blocks), dtype=torch.float64))


@pytest.mark.parametrize("structure", ["joint", "joint_core"])
def test_the_sketch_finds_the_leading_directions(problem: Problem, structure: str) -> None:
    """Between nothing and the whole curvature, and the nearer to the best of its rank the more columns it has.

    The tiny model's spectrum falls slowly (the 20th eigenvalue is a tenth of the first), the hard case.
    """
    blocks = find_blocks(problem.model, 3)
    rows = rows_of(problem.model, problem.task, batch_size=16)
    ggn = dense_ggn(problem, blocks)
    values = torch.linalg.eigvalsh(ggn)
    for oversampling, captured in ((0, 0.75), (60, 0.98)):  # seen: 0.82 and more, 0.99 and more
        found = dense_curvature(fit_joint(blocks, rows, structure, 10, oversampling=oversampling))
        assert torch.linalg.eigvalsh(ggn - found).min() > -1e-9 * values[-1]
        best = values[-10:].sum()
        assert captured * best < found.trace() <= best * (1 + 1e-9)


def test_the_seed_matters_only_where_the_sketch_is_small(tiny: Any) -> None:
    """The curvature of 24 rows has rank 44: 40 columns leave something to chance, 80 nothing."""
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=24)
    gaps = []
    for oversampling in (0, 60):
        one, two = (
            covariance(fit_joint(blocks, rows, "joint", 20, oversampling=oversampling, seed=seed), rows[0])
            for seed in (0, 1)
        )
        gaps.append(float((one - two).abs().max() / one.abs().max()))
    assert gaps[0] > 1e-3
    assert gaps[1] < 1e-9


def test_an_indefinite_sketch_is_refused(tiny: Any) -> None:
    _, _, blocks = tiny
    state = replace(empty_sketch(blocks, columns=6, seed=0), rows=3)
    negative = replace(state, sketch=tuple(-joint_test_matrix(state, i) for i in range(len(blocks))))
    with pytest.raises(FactorizationError, match=re.escape("not positive semidefinite (last shift")):
        joint_from_sketch(negative, 3, torch.float64)


def test_a_sketch_with_rounding_warns_of_its_shift(tiny: Any) -> None:
    """A negative eigenvalue of 1e-11 of the curvature needs a larger shift than rounding does: said, not hidden."""
    _, _, blocks = tiny
    state = empty_sketch(blocks, columns=6, seed=0)
    tests = [joint_test_matrix(state, i) for i in range(len(blocks))]
    direction = torch.cat([t[:, 0] for t in tests])
    direction = (direction / direction.norm()).split([len(t) for t in tests])
    along = sum(d @ t for d, t in zip(direction, tests, strict=True))
    sketch = tuple(torch.outer(d, along) - 1e-11 * t for d, t in zip(direction, tests, strict=True))
    with pytest.warns(RuntimeWarning, match="sketch factorised with a shift"):
        factor = nystrom_factor(sketch, tests.__getitem__, 1, "all")
    # The one direction is found none the less.
    assert sum(float(f[0] @ d) for f, d in zip(factor, direction, strict=True)) ** 2 == pytest.approx(1, abs=1e-6)
