"""The fits of the joint posteriors: bases from second moments, the sketch of the core; and what all fits share."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from dense_reference import Problem
from fast_path import close, replay, rows_of
from joint_problem import PRIOR, changed, covariance, dense_curvature, dense_ggn, fit_joint
from tiny_models import generator, tiny_model, tiny_task

from laplora.errors import FactorizationError, LaploraWarning, NonFiniteError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import block_precisions
from laplora.posterior.joint_core import JointSketch, joint_test_matrix
from laplora.posterior.passes import StructureSettings
from laplora.posterior.sketch import nystrom_factor
from laplora.posterior.structures import STRUCTURES, fit_posterior


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, tuple[Block, ...]]:
    """A model, 24 rows of three classes, and its blocks."""
    model, task = tiny_model("llama"), tiny_task()
    return model, task, find_blocks(model, 3)


def test_the_sketch_finds_the_leading_directions(problem: Problem) -> None:
    """Between nothing and the whole curvature, and the nearer to the best of its rank the more columns it has."""
    blocks = find_blocks(problem.model, 3)
    rows = rows_of(problem.model, problem.task, batch_size=16)
    ggn = dense_ggn(problem, blocks)
    values = torch.linalg.eigvalsh(ggn)
    for oversampling, captured in ((0, 0.75), (60, 0.98)):  # seen: 0.82 and more, 0.99 and more
        found = dense_curvature(fit_joint(blocks, rows, 10, oversampling=oversampling))
        assert torch.linalg.eigvalsh(ggn - found).min() > -1e-9 * values[-1]
        best = values[-10:].sum()
        assert captured * best < found.trace() <= best * (1 + 1e-9)


def test_an_indefinite_sketch_is_refused_and_one_with_rounding_warns_of_its_shift(tiny: Any) -> None:
    """A negative eigenvalue of 1e-11 of the curvature needs a larger shift than rounding does: said, not hidden."""
    empty = tuple(torch.zeros(block.wide * block.narrow, 6, dtype=torch.float64) for block in tiny[2])
    state = JointSketch(tiny[2], 0, empty, seed=0)
    tests = [joint_test_matrix(state, i) for i in range(len(tiny[2]))]
    with pytest.raises(FactorizationError, match=re.escape("not positive semidefinite (last shift")):
        nystrom_factor([-test for test in tests], tests.__getitem__, 3, "all")
    direction = torch.cat([t[:, 0] for t in tests])
    parts = (direction / direction.norm()).split([len(t) for t in tests])
    along = sum(d @ t for d, t in zip(parts, tests, strict=True))
    sketch = [torch.outer(d, along) - 1e-11 * t for d, t in zip(parts, tests, strict=True)]
    with pytest.warns(LaploraWarning, match="sketch factorised with a shift"):
        factor = nystrom_factor(sketch, tests.__getitem__, 1, "all")
    # The one direction is found none the less.
    assert sum(float(f[0] @ d) for f, d in zip(factor, parts, strict=True)) ** 2 == pytest.approx(1, abs=1e-6)


# What all fits share.


@pytest.mark.parametrize("structure", STRUCTURES)
def test_neither_batch_size_nor_order_matters(tiny: Any, structure: str) -> None:
    """No 1/batch-size scale, no dropped partial batch, no padding counted as data; sketches below the rank too."""
    model, task, blocks = tiny
    order = torch.randperm(24, generator=generator(1)).tolist()
    ways = [
        rows_of(model, task, batch_size=24),
        rows_of(model, task, batch_size=1),
        rows_of(model, task, batch_size=5, order=order),
    ]
    settings = StructureSettings(structure, rank=4, joint_rank=8, basis_dtype=torch.float64)
    first, *others = (covariance(fit_posterior(settings, blocks, replay(way)), ways[0][0]) for way in ways)
    for other in others:
        close(other, first, 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_jacobians_of_few_digits(tiny: Any, dtype: torch.dtype, tolerance: float) -> None:
    """Sums are in float64 whatever the model gives: what remains is the rounding of the Jacobians themselves.

    Curvature up to a hundred times the prior's magnifies it. Directions are rounded before anything is measured.
    """
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=8)
    few = changed(rows, lambda j: j.to(dtype))
    found = fit_joint(blocks, few, 60, basis_dtype=dtype)
    assert all(torch.equal(d, d.to(dtype).float()) for d in found.directions)
    expected, got = covariance(fit_joint(blocks, rows, 60), rows[0]), covariance(found, few[0])
    assert got.dtype == torch.float64
    assert float((got - expected).abs().max() / expected.abs().max()) < tolerance


def test_gradients_that_vanish_leave_the_prior_and_others_are_refused(tiny: Any) -> None:
    """An adapter that no row reaches has no curvature; new inputs have the prior's variance."""
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=24)
    for structure in STRUCTURES:
        with pytest.raises(FactorizationError, match="no rows"):
            fit_posterior(StructureSettings(structure), blocks, replay([]))
    with pytest.raises(NonFiniteError, match=r"curvature of .* is not finite"):
        fit_joint(blocks, changed(rows, lambda j: torch.full_like(j, torch.nan)), 60)
    found = fit_joint(blocks, changed(rows, lambda j: 0 * j), 8, rank=4)
    flat = torch.cat([b.jacobian.flatten(2) for b in rows[0].jacobians.blocks], 2)
    expected = flat @ flat.mT / PRIOR.precision["all"]
    torch.testing.assert_close(covariance(found, rows[0]), expected, rtol=1e-10, atol=1e-12)
    precisions = block_precisions(PRIOR, blocks)
    assert float(found.log_determinant_ratio(precisions)) == 0
    assert not found.effective_dimension(precisions).any()
