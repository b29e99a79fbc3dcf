"""The meter on the meta device: calls whose memory is known."""

from __future__ import annotations

import pytest
import torch

from benchmarks.estimate.trace import counted_peak


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_the_peak_is_what_is_held_at_a_time() -> None:
    """As in the test of the CPU's meter: 3 MB at a time, and what was there before does not count."""

    def known(before: torch.Tensor) -> torch.Tensor:
        first, second = empty(250_000), empty(500_000)
        view = before.view(-1, 2)[1:]
        del first
        many = [empty(250) for _ in range(500)]
        del second, many, view
        return empty(250_000)

    before = empty(5_000_000)
    assert counted_peak(lambda: known(before)) == 3_000_000
    assert counted_peak(lambda: empty(100)) == 400
    assert counted_peak(lambda: before.view(-1, 2).T) == 0


def test_a_graph_holds_its_activations() -> None:
    """exp keeps its output and sin its input, the same tensor; the leaf's gradient is made beside one product."""
    leaf = empty(1000).requires_grad_()
    assert counted_peak(lambda: leaf.exp().sin()) == 8000
    assert counted_peak(lambda: leaf.exp().sin().sum().backward()) == pytest.approx(16000, abs=4100)
