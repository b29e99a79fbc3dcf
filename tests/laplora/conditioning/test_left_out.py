"""Analytic leave-one-out against conditioning anew without each row."""

from __future__ import annotations

import pytest
import torch
from conditioning_problem import problem

from laplora.conditioning.left_out import left_out_mean
from laplora.conditioning.mode import posterior_mode


@pytest.mark.parametrize(("scale", "within"), [(0.01, 0.02), (0.1, 0.2)])
def test_as_conditioned_anew(scale: float, within: float) -> None:
    """The mean of a row is that of the other rows' conditioning, far closer than the mode that has seen the row."""
    p = problem(scale)
    kernel, mean, labels, mask = p["kernel"], p["mean"], p["labels"], p["mask"]
    mode = posterior_mode(kernel, mean, labels, mask)
    found = left_out_mean(mode, kernel)
    for row in range(len(labels)):
        others = torch.tensor([i for i in range(len(labels)) if i != row])
        without = posterior_mode(kernel[others][:, :, others], mean[others], labels[others], mask[others])
        expected = (mean[[row]] + without.moved(kernel[[row]][:, :, others]))[0]
        possible = mask[row, 1:]
        gap = (found[row] - expected)[possible].norm()
        seen = (mode.contrasts[row] - expected)[possible].norm()
        assert float(gap) <= within * float(seen)


def test_rows_of_one_input_leave_together() -> None:
    """Labels of one input say nothing of each other where they are left out together."""
    p = problem(0.02)
    kernel, mean, labels, mask = p["kernel"], p["mean"], p["labels"], p["mask"]
    mode = posterior_mode(kernel, mean, labels, mask)
    found = left_out_mean(mode, kernel, together=3)
    others = torch.arange(3, len(labels))
    without = posterior_mode(kernel[others][:, :, others], mean[others], labels[others], mask[others])
    expected = mean[:3] + without.moved(kernel[:3][:, :, others])
    gap, seen = (found[:3] - expected).norm(), (mode.contrasts[:3] - expected).norm()
    assert float(gap) <= 0.05 * float(seen)
    assert not torch.allclose(found, left_out_mean(mode, kernel))
