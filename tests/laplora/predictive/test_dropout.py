"""Dropout members: masks that depend on seed, name and member alone, and weights that equal dropping the input."""

from __future__ import annotations

import math

import pytest
import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block
from laplora.predictive.dropout import dropout_masks, member_weights

Q, V = Block("q.lora_A", "lora_A", 2000, 4), Block("v.lora_A", "lora_A", 50, 4)
Q_B = Block("q.lora_B", "lora_B", 16, 4)


@pytest.mark.parametrize("p", [0.05, 0.9])
def test_masks_are_zero_or_the_inverse_keep_rate_as_often_as_p_says(p: float) -> None:
    masks = dropout_masks([Q, Q_B, V], p, 3, seed=5)
    assert {n: tuple(m.shape) for n, m in masks.items()} == {"q.lora_A": (3, 2000), "v.lora_A": (3, 50)}
    kept = masks["q.lora_A"] != 0
    torch.testing.assert_close(masks["q.lora_A"][kept], torch.full((int(kept.sum()),), 1 / (1 - p)))
    # Each member's rate is within five standard deviations.
    assert ((~kept).double().mean(1) - p).abs().max() <= 5 * math.sqrt(p * (1 - p) / 2000)


def test_a_mask_depends_on_seed_name_and_member_alone() -> None:
    state = torch.random.get_rng_state()
    masks = dropout_masks([Q, V], 0.3, 4, seed=7)
    again = dropout_masks([V], 0.3, 2, seed=7)["v.lora_A"]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again, masks["v.lora_A"][:2])
    others = [masks["q.lora_A"][0, :50], again[1], dropout_masks([V], 0.3, 1, seed=8)["v.lora_A"][0]]
    assert all(not torch.equal(other, again[0]) for other in others)


def test_a_members_weight_is_dropping_the_input() -> None:
    """One mask for all tokens of all rows, scaled as torch's own dropout does."""
    weight = torch.randn(4, 50)
    before = weight.clone()
    masks = dropout_masks([V], 0.25, 3, seed=1)
    x = torch.randn(2, 5, 50)
    for member in range(3):
        got = member_weights({"v.lora_A": weight}, masks, member)["v.lora_A"]
        # Products in another order, float32.
        torch.testing.assert_close(x @ got.T, (x * masks["v.lora_A"][member]) @ weight.T, atol=1e-5, rtol=1e-5)
    assert torch.equal(weight, before)
    half = member_weights({"v.lora_A": weight.bfloat16().requires_grad_()}, masks, 0)["v.lora_A"]
    assert (half.dtype, half.requires_grad) == (torch.bfloat16, False)


def test_refusals() -> None:
    for p in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match=r"in \(0, 1\)"):
            dropout_masks([V], p, 2, 0)
    with pytest.raises(ConfigError, match="at least one member"):
        dropout_masks([V], 0.5, 0, 0)
    with pytest.raises(ConfigError, match="no lora_A"):
        dropout_masks([Q_B], 0.5, 2, 0)
    masks = dropout_masks([V], 0.5, 2, 0)
    with pytest.raises(ConfigError, match=r"these differ: \['v.lora_A', 'w'\]"):
        member_weights({"w": torch.zeros(2, 50)}, masks, 0)
    for width, member in ((51, 0), (50, -1), (50, 2)):
        with pytest.raises(ConfigError, match=rf"needs member {member} of masks {width} wide, got \(2, 50\)"):
            member_weights({"v.lora_A": torch.zeros(2, width)}, masks, member)
