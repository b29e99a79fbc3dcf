"""The meter on the meta device: calls whose memory is known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

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


def test_attention_keeps_no_scores() -> None:
    """64 x 64 scores of 4 heads in 2 rows would be 131 kB, four times what the result takes."""
    states = [empty(2, 4, 64, 16).requires_grad_() for _ in range(3)]
    mask = torch.empty(2, 1, 64, 64, dtype=torch.bool, device="meta")
    plain = counted_peak(lambda: F.scaled_dot_product_attention(*states))
    masked = counted_peak(lambda: F.scaled_dot_product_attention(*states, attn_mask=mask))
    assert states[0].nbytes <= plain < 1.2 * states[0].nbytes
    assert masked < plain + 3 * 2 * 64 * 64 * 4


def test_values_are_zero_or_false() -> None:
    """A mask is not all ones, so it is kept; a number is within any limit."""
    seen: list[object] = []
    counted_peak(lambda: seen.extend([bool(empty(3).isfinite().all()), float(empty(3).norm()), int(empty(2).argmax())]))
    assert seen == [False, 0.0, 0]
