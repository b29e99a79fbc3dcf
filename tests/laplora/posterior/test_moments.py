"""Bases from the Jacobians' second moments: against the dense GGN, merged, shared out, and what they are for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from joint_problem import Rows, dense_ggn, fit_joint, flat_jacobians, replay, rows_of
from reference_problem import Problem
from tiny_models import tiny_model, tiny_task

from laplora.errors import FactorizationError, NonFiniteError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.moments import (
    LARGEST_SHARE,
    MomentSums,
    add_moment_batch,
    empty_moments,
    merge_moments,
    moment_bases,
    shared_ranks,
)


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


def test_sums_of_two_workers_add_up_whatever_the_batches(tiny: Any) -> None:
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=6)
    whole = moments(blocks, rows_of(model, task, batch_size=24))
    parts = merge_moments(moments(blocks, rows[:1]), moments(blocks, rows[1:]))
    assert (parts.rows, parts.blocks, parts.seed) == (24, blocks, 5)
    for name in ("wide", "narrow"):
        for one, two in zip(getattr(whole, name), getattr(parts, name), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-11 * float(one.abs().max()))
    others = (
        moments(blocks, rows, seed=6),
        moments(blocks, rows, oversampling=3),
        moments(blocks[:-1], [replace_blocks(r, -1) for r in rows]),
    )
    for other in others:
        with pytest.raises(FactorizationError, match="merge only with the same"):
            merge_moments(whole, other)


def replace_blocks(rows: Rows, last: int) -> Rows:
    return replace(rows, jacobians=replace(rows.jacobians, blocks=rows.jacobians.blocks[:last]))


def test_the_rank_is_shared_by_what_each_direction_is_worth(tiny: Any) -> None:
    model, task, blocks = tiny
    sums = moments(blocks, rows_of(model, task, batch_size=8), rank=2, oversampling=8)
    bases = moment_bases(sums, 2)
    counts = [b.wide.shape[1] for b in bases]
    assert sum(counts) == 2 * len(blocks)
    assert 1 <= min(counts) < 2 < max(counts) <= LARGEST_SHARE * 2
    everything = [b.wide_eigenvalues for b in moment_bases(sums, 1000)]
    smallest_kept = min(float(v[n - 1]) for v, n in zip(everything, counts, strict=True) if n > 1)
    largest_left = max(float(v[n]) for v, n in zip(everything, counts, strict=True) if n < min(len(v), 8))
    assert smallest_kept >= largest_left


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
    jacobians, ggn = flat_jacobians(problem, blocks), dense_ggn(problem, blocks)
    assert jacobians.shape[2] == len(ggn)
    kept = float(core.factor.square().sum())
    best_even, start = 0.0, 0
    for block in blocks:
        end = start + block.wide * block.narrow
        own = ggn[start:end, start:end].reshape(block.wide, block.narrow, block.wide, block.narrow)
        best_even += float(torch.linalg.eigvalsh(torch.einsum("wkvk->wv", own))[-2:].sum())
        start = end
    assert best_even * (1 - 1e-3) < kept <= float(ggn.trace()) * (1 + 1e-9)
