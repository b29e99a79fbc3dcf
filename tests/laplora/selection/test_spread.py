"""Batches by distance, score and chance."""

from __future__ import annotations

import pytest
import torch

from laplora.selection.spread import at_random, highest, k_center


def test_k_center_takes_the_farthest_point() -> None:
    """Points on a line: the middle, the ends, then what is farthest from those; never one that is not allowed."""
    points = torch.tensor([[0.0], [1.0], [4.0], [5.5], [10.0], [100.0]])
    allowed = torch.tensor([True] * 5 + [False])
    found = k_center(points, 9, allowed)
    assert found.order.tolist() == [2, 4, 0, 3, 1]
    assert found.gains.tolist() == pytest.approx([0.1, 6.0, 4.0, 1.5, 1.0])
    assert k_center(points, 2, allowed).order.tolist() == [2, 4]


def test_highest_is_sorted_and_stable() -> None:
    """The highest score is first, and the first of equal ones."""
    allowed = torch.tensor([True, True, False, True])
    found = highest(torch.tensor([0.5, 0.7, 9.0, 0.7]), 3, allowed)
    assert found.order.tolist() == [1, 3, 0]
    assert torch.allclose(found.gains, torch.tensor([0.7, 0.7, 0.5], dtype=torch.float64))


def test_a_random_batch_has_each_allowed_row_once() -> None:
    """The draw goes by the generator alone."""
    allowed = torch.arange(20) % 3 > 0
    one = at_random(50, allowed, torch.Generator().manual_seed(1)).order
    assert sorted(one.tolist()) == allowed.nonzero()[:, 0].tolist()
    assert one.tolist() == at_random(50, allowed, torch.Generator().manual_seed(1)).order.tolist()
    assert one.tolist() != at_random(50, allowed, torch.Generator().manual_seed(2)).order.tolist()
