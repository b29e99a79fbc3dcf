"""Familiarity as a share of the calibration rows, and what it promises of them."""

from __future__ import annotations

import math

import pytest
import torch
from shown_states import familiarity_of, states_of

from laplora.familiarity.percentile import (
    false_alarms,
    is_unfamiliar,
    percentile,
    watched_layers,
)
from laplora.jacobians.states import States


def states(count: int, seed: int, shift: float = 0.0) -> States:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 2, 12, generator=draw) * torch.tensor([1.0, 9.0])[:, None] + shift
    return states_of(hidden, 3 * torch.randn(count, 2, generator=draw))


def test_it_is_the_conformal_p_value() -> None:
    reference = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)
    found = percentile(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), reference)
    # At least as strange are all 4, all 4, 3, 1, 1, none; the row itself counts too.
    assert found.tolist() == [1.0, 1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_flag_is_raised_on_at_most_the_stated_share_of_rows_like_the_calibration_rows(rate: float) -> None:
    """Over many draws of 99 calibration rows: their share is known, since a p-value takes each of its values alike."""
    train = states(60, 0)
    labels = torch.arange(60) % 2
    raised = []
    for seed in range(200):
        drawn = states(119, 100 + seed)
        found = familiarity_of(train, labels, drawn.take(torch.arange(99)))
        raised.append(
            is_unfamiliar(found.of(drawn.take(torch.arange(99, 119))), false_alarms(rate, 99)).double().mean()
        )
    share = float(torch.stack(raised).mean())
    # 4,000 rows, of which those of a draw are flagged together or not: three standard errors.
    assert share == pytest.approx(math.floor(rate * 100) / 100, abs=3 * math.sqrt(rate / 1500))


def test_strangers_are_less_familiar_than_every_calibration_row() -> None:
    found = familiarity_of(states(60, 0), torch.zeros(60, dtype=torch.int64), states(49, 1))
    assert found.of(states(10, 2, 30.0)).tolist() == [1 / 50] * 10
    assert float(found.of(states(500, 3)).mean()) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("wanted", "rows", "share"), [(0.02, 150, 0.02), (0.02, 20, 1 / 21), (0.02, 49, 0.02)])
def test_few_rows_tell_no_small_share(wanted: float, rows: int, share: float) -> None:
    assert false_alarms(wanted, rows) == share
    stranger_than_all = torch.tensor([1 / (rows + 1)], dtype=torch.float64)
    assert is_unfamiliar(stranger_than_all, false_alarms(wanted, rows)).tolist() == [True]
    shares = torch.arange(1, 100, dtype=torch.float64) / 100
    assert all(int(is_unfamiliar(shares, share / 100).sum()) == share for share in range(1, 99))  # 2 of 100 are 0.02


def test_which_layers_are_watched() -> None:
    middles = {1: (0,), 2: (0, 1), 3: (0, 1, 2), 12: (3, 4, 5, 7, 8, 9), 30: (7, 10, 13, 16, 19, 22)}
    assert {count: watched_layers(count, ends_alike=True) for count in middles} == middles
    assert watched_layers(30, ends_alike=False) == (29,)
