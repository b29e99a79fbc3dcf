"""Averages over orders against the moments of a mixture written out, for inputs with different numbers of options."""

from __future__ import annotations

import math

import pytest
import torch

from laplora.errors import DataError
from laplora.linearised import PosteriorPredictive
from laplora.predictive.order_average import average_by_input, average_orders, order_information
from laplora.prompts.option_order import option_orders

F64 = torch.float64
OPTIONS = (2, 4, 3, 2)


def test_the_average_is_the_mixture_of_the_orders_as_members() -> None:
    """Its moments written out, from any predictive of each prompt."""
    orders = [order for count in OPTIONS for order in option_orders(count)]
    counts = [len(option_orders(count)) for count in OPTIONS]
    draw = torch.Generator().manual_seed(6)
    mask = torch.arange(4) < torch.tensor([len(order) for order in orders])[:, None]
    probs, std = (torch.rand(mask.shape, generator=draw, dtype=F64) * mask for _ in range(2))
    probs = probs / probs.sum(1, keepdim=True)
    entropies = torch.rand(len(orders), generator=draw, dtype=F64)
    got = average_orders(PosteriorPredictive(probs, std, entropies), orders, counts)
    start = 0
    for i, count in enumerate(counts):
        rows = range(start, start + count)
        for option in range(OPTIONS[i]):
            places = [orders[r].index(option) for r in rows]
            means = torch.stack([probs[r, place] for r, place in zip(rows, places, strict=True)])
            second = torch.stack([std[r, place] ** 2 for r, place in zip(rows, places, strict=True)]) + means**2
            torch.testing.assert_close(got.probs[i, option], means.mean(), atol=1e-12, rtol=1e-12)
            variance = second.mean() - means.mean() ** 2
            torch.testing.assert_close(got.std[i, option] ** 2, variance, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(got.expected_entropy[i], entropies[list(rows)].mean())
        assert got.probs[i, OPTIONS[i] :].eq(0).all()
        start += count


def test_orders_that_agree_change_nothing_and_hold_no_information() -> None:
    orders = option_orders(3)
    shown = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=F64)
    probs = torch.stack([torch.cat([shown[list(order)], shown[3:]]) for order in orders])
    predictive = PosteriorPredictive(probs, torch.zeros_like(probs), torch.special.entr(probs).sum(1))
    got = average_orders(predictive, orders, [6])
    torch.testing.assert_close(got.probs[0], shown, atol=1e-15, rtol=0)
    assert got.std.max() < 1e-15
    assert order_information(probs, orders, [6]).item() < 1e-15


def test_an_answer_that_only_looks_at_the_place_is_all_order() -> None:
    orders = option_orders(4)
    probs = torch.eye(4, dtype=F64)[:1].repeat(4, 1)  # always the first place, never a doubt
    assert order_information(probs, orders, [4]).item() == pytest.approx(math.log(4), abs=1e-15)
    predictive = PosteriorPredictive(probs, torch.zeros_like(probs), torch.zeros(4, dtype=F64))
    got = average_orders(predictive, orders, [4])
    assert got.probs.tolist() == [[0.25] * 4]
    assert got.expected_entropy.item() == 0


@pytest.mark.parametrize("counts", [[], [2, 0, 1], [2, 2]])
def test_rows_that_do_not_divide_into_inputs_are_refused(counts: list[int]) -> None:
    with pytest.raises(DataError, match="3 rows do not divide"):
        average_by_input(torch.zeros(3, 2), counts)
