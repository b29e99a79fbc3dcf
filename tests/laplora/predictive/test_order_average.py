"""Averages over two orders against the moments of a mixture written out."""

from __future__ import annotations

import math

import pytest
import torch

from laplora.linearised import PosteriorPredictive
from laplora.predictive.order_average import average_orders, order_information

F64 = torch.float64


def test_the_average_is_the_mixture_of_the_orders_as_members() -> None:
    """Its moments written out, from any predictive of each prompt."""
    draw = torch.Generator().manual_seed(6)
    probs, std = (torch.rand(2, 5, 4, generator=draw, dtype=F64) for _ in range(2))
    probs = probs / probs.sum(2, keepdim=True)
    entropies = torch.rand(2, 5, generator=draw, dtype=F64)
    got = average_orders(*(PosteriorPredictive(*one) for one in zip(probs, std, entropies, strict=True)))
    torch.testing.assert_close(got.probs, probs.mean(0), atol=1e-12, rtol=1e-12)
    variance = (std**2 + probs**2).mean(0) - probs.mean(0) ** 2
    torch.testing.assert_close(got.std**2, variance, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(got.expected_entropy, entropies.mean(0))


def test_orders_that_agree_hold_no_information_and_an_answer_that_only_looks_at_the_place_nothing_else() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1, 0.0]], dtype=F64)
    one = PosteriorPredictive(probs, torch.zeros_like(probs), torch.special.entr(probs).sum(1))
    got = average_orders(one, one)
    torch.testing.assert_close(got.probs, probs, atol=1e-15, rtol=0)
    assert max(got.std.max(), order_information(probs, probs).max()) < 1e-15
    place = torch.eye(2, dtype=F64)[:1]  # always the first place, never a doubt
    assert order_information(place, place.flip(1)).item() == pytest.approx(math.log(2), abs=1e-15)
