"""Bounds that hold at any time: true means stay above them however often one looks, and they find what is there."""

from __future__ import annotations

import pytest
import torch

from laplora.errors import DataError
from laplora.metrics.anytime import lowest_mean

LOOKS = (20, 50, 100, 200, 400, 800)


def _streams(mean: float, count: int) -> list[torch.Tensor]:
    """Streams of skewed values in [-1, 1]: mostly small, rarely large, as differences of losses are."""
    generator = torch.Generator().manual_seed(0)
    small = 0.1 * torch.randn(count, 800, generator=generator, dtype=torch.float64)
    rare = torch.rand(count, 800, generator=generator, dtype=torch.float64)
    values = small + 0.8 * (rare < 0.05).double() - 0.8 * (rare > 0.95).double() + mean
    return list(values.clamp(-1, 1))


def _lowest(values: torch.Tensor, chance: float) -> float:
    return lowest_mean([values], [1.0], low=-1, high=1, chance=chance)


def test_at_all_looks_together_it_is_above_the_mean_at_most_as_often_as_stated() -> None:
    wrong = [any(_lowest(stream[:n], 0.4) > 0 for n in LOOKS) for stream in _streams(0.0, 200)]
    assert 0.02 < sum(wrong) / len(wrong) < 0.4, "never would be a bound of no use"


def test_it_finds_a_mean_and_stays_below_it() -> None:
    bounds = torch.tensor([[_lowest(stream[:n], 0.05) for n in LOOKS] for stream in _streams(0.1, 20)])
    assert (bounds[:, -1] > 0.02).all()
    assert (bounds <= 0.1).all(1).float().mean() >= 0.9
    assert bounds.mean(0).diff().gt(0).all(), "more rows, more certain"


def test_of_strata_it_weighs_each_by_its_share_and_one_without_rows_may_be_anything() -> None:
    generator = torch.Generator().manual_seed(0)
    few, many = (mean + 0.1 * torch.randn(count, generator=generator) for mean, count in ((-0.2, 40), (0.3, 400)))
    options: dict[str, float] = {"low": -1, "high": 1, "chance": 0.05}
    bound = lowest_mean([few, many], [0.8, 0.2], **options)
    assert -0.3 < bound < 0.8 * -0.2 + 0.2 * 0.3
    assert lowest_mean([few, many], [0.2, 0.8], **options) > 0.1, "as rows come does not matter, their shares do"
    alone = lowest_mean([many], [1.0], **options)
    assert lowest_mean([many, few], [1.0, 0.0], **options) == alone
    unknown = lowest_mean([few[:0], many], [0.5, 0.5], **options)
    assert unknown == pytest.approx(0.5 * -1 + 0.5 * alone, abs=0.01)


def test_null_of_two_strata_labelled_unequally() -> None:
    """What is good in the stratum with many labels is as bad in the other one: together nothing is gained."""
    generator, wrong = torch.Generator().manual_seed(1), 0
    for _ in range(150):
        many = (torch.rand(300, generator=generator) < 0.6).double() * 2 - 1
        few = (torch.rand(40, generator=generator) < 0.4).double() * 2 - 1
        looks = ((n, n // 7 + 1) for n in (30, 100, 300))
        wrong += any(lowest_mean([many[:n], few[:k]], [0.5, 0.5], low=-1, high=1, chance=0.2) > 0 for n, k in looks)
    assert wrong / 150 < 0.2


def test_units_and_what_it_refuses() -> None:
    rows = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0] * 40)
    unit = lowest_mean([rows], [1.0], low=0, high=1, chance=0.05)
    assert lowest_mean([10 * rows - 5], [1.0], low=-5, high=5, chance=0.05) == pytest.approx(10 * unit - 5)
    assert lowest_mean([rows.flip(0)], [1.0], low=0, high=1, chance=0.05) == unit
    assert lowest_mean([torch.zeros(0)], [1.0], low=-2, high=1, chance=0.05) == -2
    with pytest.raises(DataError, match="between 0 and 1"):
        lowest_mean([rows + 1], [1.0], low=0, high=1, chance=0.05)
    with pytest.raises(DataError, match="one or two strata"):
        lowest_mean([rows] * 3, [1 / 3] * 3, low=0, high=1, chance=0.05)
