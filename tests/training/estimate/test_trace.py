"""The meter on the meta device: calls whose memory and work are known."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from training.estimate.cards import CARDS, Card
from training.estimate.trace import LAUNCH_S, work_of


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


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
    assert work_of(lambda: known(before)).peak_bytes == 3_000_000
    assert work_of(lambda: empty(100)).peak_bytes == 400
    assert work_of(lambda: before.view(-1, 2).T).peak_bytes == 0


def test_a_graph_holds_its_activations() -> None:
    """exp keeps its output and sin its input, the same tensor; the leaf's gradient is made beside one product."""
    leaf = empty(1000).requires_grad_()
    assert work_of(lambda: leaf.exp().sin()).peak_bytes == 8000
    assert work_of(lambda: leaf.exp().sin().sum().backward()).peak_bytes == pytest.approx(16000, abs=4100)


def test_products_and_bytes_of_a_matrix_product() -> None:
    work = work_of(lambda: empty(3, 5) @ empty(5, 7))
    assert work.products == 2 * 3 * 5 * 7
    assert (2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7)) in work.kernels


def test_looking_up_reads_no_more_than_it_returns() -> None:
    table, tokens = empty(1000, 8), torch.empty(6, dtype=torch.int64, device="meta")
    assert work_of(lambda: F.embedding(tokens, table)).kernels == {(0, 2 * 6 * 8 * 4): 1}


def test_attention_keeps_no_scores() -> None:
    """64 x 64 scores of 4 heads in 2 rows would be 131 kB, four times what the result takes."""
    states = [empty(2, 4, 64, 16).requires_grad_() for _ in range(3)]
    mask = torch.empty(2, 1, 64, 64, dtype=torch.bool, device="meta")
    plain = work_of(lambda: F.scaled_dot_product_attention(*states))
    masked = work_of(lambda: F.scaled_dot_product_attention(*states, attn_mask=mask))
    assert plain.products == masked.products == 2 * 2 * (2 * 4 * 64 * 64 * 16)
    assert states[0].nbytes <= plain.peak_bytes < 1.2 * states[0].nbytes
    assert masked.peak_bytes < plain.peak_bytes + 3 * 2 * 64 * 64 * 4


def test_values_are_zero_or_false() -> None:
    """A mask is not all ones, so it is kept; a number is within any limit."""
    seen: list[object] = []
    work_of(lambda: seen.extend([bool(empty(3).isfinite().all()), float(empty(3).norm()), int(empty(2).argmax())]))
    assert seen == [False, 0.0, 0]


def test_the_time_is_that_of_products_of_memory_or_of_launches() -> None:
    card = Card("slow", 1, products_per_s=1e6, bytes_per_s=1e9)
    large = work_of(lambda: empty(100, 100) @ empty(100, 100))
    assert large.seconds(card) == pytest.approx(2e6 / 1e6, rel=0.01)
    wide = work_of(lambda: empty(1_000_000).exp())
    assert wide.seconds(card) == pytest.approx(8e6 / 1e9 + 4e6 / 1e9, rel=0.6)  # exp, and the empty tensor itself
    assert work_of(lambda: empty(1).exp()).seconds(CARDS[-1]) == pytest.approx(2 * LAUNCH_S, rel=0.6)
