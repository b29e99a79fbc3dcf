"""Sums over the rows of two workers add up to those of one pass, and sums that do not belong together are refused."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from fast_path import close, fit, replay, rows_of
from tiny_models import tiny_model, tiny_task

from laplora.errors import FactorizationError
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.joint_core import add_moment_batch, add_sketch_batch, empty_moments, empty_sketch, moment_bases
from laplora.posterior.kronecker import add_batch, add_eigen_batch, empty_eigen_sums, empty_sums
from laplora.posterior.structures import merge_workers

KINDS = ("factors", "scales", "moments", "joint", "core")


@pytest.fixture(scope="module")
def passes() -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """Twenty-four rows in batches of 6, and by kind of sum the empty one and what adds a batch."""
    model, task = tiny_model("llama"), tiny_task()
    blocks, rows = find_blocks(model, 3), rows_of(model, task, batch_size=6)
    bases = fit(model, task, batch_size=24, rank=4).bases
    core = moment_bases(replay(rows)("", empty_moments(blocks, rank=4, oversampling=4, seed=0), add_moment_batch), 4)
    return rows, {
        "factors": (empty_sums(blocks, sketch_columns=10, seed=3), add_batch),
        "scales": (empty_eigen_sums(bases), lambda s, j, m: add_eigen_batch(s, j, bases, m)),
        "moments": (empty_moments(blocks, rank=1, oversampling=2, seed=3), add_moment_batch),
        "joint": (empty_sketch(blocks, columns=12, seed=3), add_sketch_batch),
        "core": (empty_sketch(blocks, columns=12, seed=3, bases=core), partial(add_sketch_batch, bases=core)),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_two_workers_add_up(passes: Any, kind: str) -> None:
    rows, kinds = passes
    empty, add = kinds[kind]
    whole = replay(rows)("", empty, add)
    merged = merge_workers(replay(rows[:1])("", empty, add), replay(rows[1:])("", empty, add))
    assert merged.rows == 24
    for field in fields(whole):
        one, other = getattr(whole, field.name), getattr(merged, field.name)
        if field.name in ("rows", "blocks", "seed"):
            assert one == other
            continue
        for a, b in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (one, other)), strict=True):
            close(b, a)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "scales"])
def test_sums_of_other_fits_do_not_merge(passes: Any, kind: str) -> None:
    empty, _ = passes[1][kind]
    name = "sketch" if kind in ("joint", "core") else "wide"
    smaller = replace(empty, **{name: tuple(t[:, 1:] for t in getattr(empty, name))})
    for other in (replace(empty, seed=4), replace(empty, blocks=empty.blocks[::-1]), smaller):
        with pytest.raises(FactorizationError, match="merge only with the same blocks, sketch size and seed"):
            merge_workers(empty, other)
