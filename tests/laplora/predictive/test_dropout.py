"""Dropout members: masks that depend on seed, name and member alone, and weights that equal dropping the input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block
from laplora.predictive.dropout import dropout_masks, member_weights


@given(p=st.floats(0.05, 0.9), members=st.integers(1, 5), seed=st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_masks_are_zero_or_the_inverse_keep_rate_as_often_as_p_says(p: float, members: int, seed: int) -> None:
    masks = dropout_masks([("a", 2000), ("b", 3)], p, members, seed)
    assert {n: tuple(m.shape) for n, m in masks.items()} == {"a": (members, 2000), "b": (members, 3)}
    kept = masks["a"] != 0
    torch.testing.assert_close(masks["a"][kept], torch.full((int(kept.sum()),), 1 / (1 - p)))
    # Each member's rate is within five standard deviations.
    assert ((~kept).double().mean(1) - p).abs().max() <= 5 * math.sqrt(p * (1 - p) / 2000)


def test_a_mask_depends_on_seed_name_and_member_alone() -> None:
    masks = dropout_masks([("a", 50), ("b", 50)], 0.3, 4, seed=7)
    again = dropout_masks([("b", 50)], 0.3, 2, seed=7)
    assert torch.equal(again["b"], masks["b"][:2])
    others = [masks["a"], masks["b"][1:], dropout_masks([("b", 50)], 0.3, 1, seed=8)["b"]]
    assert all(not torch.equal(other[0], masks["b"][0]) for other in others)
    state = torch.random.get_rng_state()
    dropout_masks([("a", 50)], 0.3, 1, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_only_lora_a_blocks_get_masks_over_their_input() -> None:
    blocks = [Block("q.lora_A", "lora_A", 24, 4), Block("q.lora_B", "lora_B", 16, 4)]
    masks = dropout_masks(blocks, 0.5, 2, seed=0)
    assert list(masks) == ["q.lora_A"]
    assert torch.equal(masks["q.lora_A"], dropout_masks([("q.lora_A", 24)], 0.5, 2, seed=0)["q.lora_A"])


def test_a_members_weight_is_dropping_the_input() -> None:
    """One mask for all tokens of all rows, scaled as torch's own dropout does."""
    weight = torch.randn(4, 24)
    before = weight.clone()
    masks = dropout_masks([("q", 24)], 0.25, 3, seed=1)
    x = torch.randn(2, 5, 24)
    for member in range(3):
        got = member_weights({"q": weight}, masks, member)["q"]
        # Products in another order, float32.
        torch.testing.assert_close(x @ got.T, (x * masks["q"][member]) @ weight.T, atol=1e-5, rtol=1e-5)
    assert torch.equal(weight, before)
    half = member_weights({"q": weight.bfloat16().requires_grad_()}, masks, 0)["q"]
    assert half.dtype == torch.bfloat16
    assert not half.requires_grad


def test_members_average_to_the_adapter() -> None:
    weight = torch.randn(2, 40, dtype=torch.float64)
    masks = dropout_masks([("q", 40)], 0.2, 4000, seed=3)
    mean = sum(member_weights({"q": weight}, masks, m)["q"] for m in range(4000)) / 4000
    # A mask's standard deviation is sqrt(p / (1 - p)) = 0.5; five standard errors of 4000 draws.
    torch.testing.assert_close(mean, weight, atol=float(weight.abs().max()) * 5 * 0.5 / math.sqrt(4000), rtol=0)


def test_refusals() -> None:
    for p in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ConfigError, match=r"in \(0, 1\)"):
            dropout_masks([("q", 4)], p, 2, 0)
    with pytest.raises(ConfigError, match="at least one member"):
        dropout_masks([("q", 4)], 0.5, 0, 0)
    with pytest.raises(ConfigError, match="no lora_A"):
        dropout_masks([Block("q.lora_B", "lora_B", 16, 4)], 0.5, 2, 0)
    with pytest.raises(ConfigError, match="two modules"):
        dropout_masks([("q", 4), ("q", 4)], 0.5, 2, 0)
    masks = dropout_masks([("q", 4)], 0.5, 2, 0)
    with pytest.raises(ConfigError, match="these differ: \\['q', 'v'\\]"):
        member_weights({"v": torch.zeros(2, 4)}, masks, 0)
    with pytest.raises(ConfigError, match=r"masks \(members, 5\)"):
        member_weights({"q": torch.zeros(2, 5)}, masks, 0)
    for member in (-1, 2):
        with pytest.raises(ConfigError, match="members 0 to 1"):
            member_weights({"q": torch.zeros(2, 4)}, masks, member)
