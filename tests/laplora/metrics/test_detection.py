"""Telling shifted rows from test rows: areas and rates against their definitions, pair by pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laplora.errors import DataError
from laplora.metrics.detection import detection

# Few different values, so that most rows are tied with others.
SCORES = st.lists(st.integers(0, 6), min_size=2, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64) / 4)


@given(inside=SCORES, outside=SCORES)
def test_area_and_rate_are_those_of_the_definitions(inside: torch.Tensor, outside: torch.Tensor) -> None:
    measured = detection(inside, outside)
    pairs = [(o > i) + (o == i) / 2 for i, o in itertools.product(inside.tolist(), outside.tolist())]
    assert measured.auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert 0 <= measured.low <= measured.auroc + 1e-12
    assert measured.auroc - 1e-12 <= measured.high <= 1
    assert (measured.inside, measured.outside) == (len(inside), len(outside))
    lowest = min(t for t in inside.tolist() if 20 * int((inside <= t).sum()) >= 19 * len(inside))
    assert measured.fpr_at_95_tpr == float((outside <= lowest).double().mean())


def test_the_interval_is_delongs() -> None:
    """Against the formula on placements, written out."""
    draw = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(80, generator=draw).double(), torch.randn(50, generator=draw).double() + 1
    measured = detection(inside, outside)
    wins = (outside[:, None] > inside[None, :]).double()
    error = (wins.mean(1).var() / 50 + wins.mean(0).var() / 80).sqrt()
    assert measured.high - measured.low == pytest.approx(2 * 1.959964 * float(error), rel=1e-9)


def test_perfect_scores_and_too_few() -> None:
    perfect = detection(torch.arange(20), torch.arange(20) + 100)
    assert (perfect.auroc, perfect.low, perfect.high, perfect.fpr_at_95_tpr) == (1, 1, 1, 0)
    with pytest.raises(DataError, match="two or more rows of each kind, got 1 in-distribution"):
        detection(torch.zeros(1), torch.zeros(5))
