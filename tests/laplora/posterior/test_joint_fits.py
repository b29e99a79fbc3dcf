"""What the fits of all joint posteriors share: no batching, few digits, refusals; and the limit of the exact one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fast_path import Rows, rows_of
from joint_problem import PRIOR, cast, covariance, fit_joint
from tiny_models import generator, tiny_model, tiny_task

from laplora.errors import ConfigError, NonFiniteError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import block_precisions
from laplora.posterior.exact import check_exact_size
from laplora.posterior.joint import JOINT_STRUCTURES


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any, tuple[Block, ...]]:
    """A model, 24 rows of three classes, and its blocks."""
    model, task = tiny_model("llama"), tiny_task()
    return model, task, find_blocks(model, 3)


@pytest.mark.parametrize("structure", JOINT_STRUCTURES)
def test_neither_batch_size_nor_order_matters(tiny: Any, structure: str) -> None:
    """To rounding of float64 sums."""
    model, task, blocks = tiny
    order = torch.randperm(24, generator=generator(1)).tolist()
    ways = [
        rows_of(model, task, batch_size=24),
        rows_of(model, task, batch_size=1),
        rows_of(model, task, batch_size=5, order=order),
    ]
    # The sketches are smaller than the curvature's rank.
    first, *others = (covariance(fit_joint(blocks, way, structure, 8, rank=4), ways[0][0]) for way in ways)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-9 * float(first.abs().max()))


@pytest.mark.parametrize("structure", JOINT_STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_jacobians_of_few_digits(tiny: Any, structure: str, dtype: torch.dtype) -> None:
    """Sums are in float64 whatever the model gives: what remains is the rounding of the Jacobians themselves."""
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=8)
    few = cast(rows, dtype)
    exact = fit_joint(blocks, rows, structure, 60)
    found = fit_joint(blocks, few, structure, 60, basis_dtype=dtype)
    assert all(d.dtype == torch.float32 for d in found.directions)
    expected, got = covariance(exact, rows[0]), covariance(found, few[0])
    assert got.dtype == torch.float64
    # Units in the last place are 6e-8 and 4e-3; curvature up to a hundred times the prior's magnifies them.
    assert float((got - expected).abs().max() / expected.abs().max()) < (1e-5 if dtype == torch.float32 else 5e-2)


def test_directions_are_rounded_before_anything_is_measured(tiny: Any) -> None:
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=8)
    for structure in JOINT_STRUCTURES:
        found = fit_joint(blocks, rows, structure, 8, basis_dtype=torch.bfloat16)
        stored = [d.to(torch.bfloat16).float() for d in found.directions]
        assert all(torch.equal(s, d) for s, d in zip(stored, found.directions, strict=True))


def test_the_posterior_moves_to_a_number_format(tiny: Any) -> None:
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=24)
    found = fit_joint(blocks, rows, "joint_core", 8, rank=4)
    moved = found.to("cpu", torch.float32)
    assert {t.dtype for t in (*moved.directions, *moved.wide, *moved.narrow)} == {torch.float32}
    assert moved.factor.dtype == torch.float64
    expected = covariance(found, rows[0])
    got = covariance(moved, cast(rows, torch.float32)[0])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_exact_posterior_has_a_limit(tiny: Any) -> None:
    model, task, blocks = tiny
    parameters = sum(b.wide * b.narrow for b in blocks)
    check_exact_size(24, 3, blocks, 48)
    with pytest.raises(ConfigError) as caught:
        check_exact_size(25, 3, blocks, 48)
    message = str(caught.value)
    for part in ("25 rows of 3 classes", "holds 50 gradients", f"{4 * 50 * parameters:.3g} bytes", "limit is 48"):
        assert part in message
    assert "joint or joint_core" in message
    rows = rows_of(model, task, batch_size=10)
    with pytest.raises(ConfigError, match="at least 20 rows of 3 classes"):  # as soon as it is passed
        fit_joint(blocks, rows, "exact", exact_limit=39)
    assert fit_joint(blocks, rows, "exact", exact_limit=48).rows == 24


def _changed(rows: list[Rows], change: Any) -> list[Rows]:
    first = rows[0].jacobians
    blocks = (replace(first.blocks[0], jacobian=change(first.blocks[0].jacobian)), *first.blocks[1:])
    return [replace(rows[0], jacobians=replace(first, blocks=blocks)), *rows[1:]]


@pytest.mark.parametrize("structure", JOINT_STRUCTURES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite(tiny: Any, structure: str, value: float) -> None:
    model, task, blocks = tiny
    rows = _changed(rows_of(model, task, batch_size=8), lambda j: torch.full_like(j, value))
    with pytest.raises(NonFiniteError, match=r"curvature of .* is not finite"):
        fit_joint(blocks, rows, structure, 60)


@pytest.mark.parametrize("structure", ["exact", "joint", "joint_core"])
def test_gradients_that_vanish_leave_the_prior(tiny: Any, structure: str) -> None:
    """An adapter that no row reaches has no curvature; new inputs have the prior's variance."""
    model, task, blocks = tiny
    rows = rows_of(model, task, batch_size=24)
    still = [replace(r, jacobians=replace(r.jacobians, blocks=_zeros(r.jacobians.blocks))) for r in rows]
    found = fit_joint(blocks, still, structure, 8, rank=4)
    flat = torch.cat([b.jacobian.flatten(2) for b in rows[0].jacobians.blocks], 2)
    expected = flat @ flat.mT / PRIOR.precision["all"]
    torch.testing.assert_close(covariance(found, rows[0]), expected, rtol=1e-10, atol=1e-12)
    precisions = block_precisions(PRIOR, blocks)
    assert float(found.log_determinant_ratio(precisions)) == 0
    assert not found.effective_dimension(precisions).any()


def _zeros(blocks: Any) -> Any:
    return tuple(
        replace(b, jacobian=0 * b.jacobian, mean_input=0 * b.mean_input, summed_gradient=0 * b.summed_gradient)
        for b in blocks
    )
