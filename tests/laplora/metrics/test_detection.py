"""Telling shifted rows from test rows: areas and rates against their definitions, pair by pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laplora.errors import DataError, NonFiniteError
from laplora.metrics.detection import detection

# Few different values, so that most rows are tied with others.
SCORES = st.lists(st.integers(0, 6), min_size=2, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64) / 4)


@given(inside=SCORES, outside=SCORES)
def test_the_area_counts_pairs_and_ties_half(inside: torch.Tensor, outside: torch.Tensor) -> None:
    measured = detection(inside, outside)
    pairs = [(o > i) + (o == i) / 2 for i, o in itertools.product(inside.tolist(), outside.tolist())]
    assert measured.auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert 0 <= measured.low <= measured.auroc + 1e-12
    assert measured.auroc - 1e-12 <= measured.high <= 1
    assert (measured.inside, measured.outside) == (len(inside), len(outside))


@given(inside=SCORES, outside=SCORES)
def test_the_rate_is_at_the_lowest_threshold_that_lets_95_percent_pass(
    inside: torch.Tensor, outside: torch.Tensor
) -> None:
    rates = [
        (float((outside <= t).double().mean()), t)
        for t in sorted(set(inside.tolist()))
        if 20 * int((inside <= t).sum()) >= 19 * len(inside)
    ]
    assert detection(inside, outside).fpr_at_95_tpr == rates[0][0]


def test_the_interval_is_delongs() -> None:
    """Against the formula on placements, written out; and it narrows with the rows, as a standard error does."""
    draw = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(80, generator=draw).double(), torch.randn(50, generator=draw).double() + 1
    measured = detection(inside, outside)
    wins = (outside[:, None] > inside[None, :]).double()
    error = (wins.mean(1).var() / 50 + wins.mean(0).var() / 80).sqrt()
    assert measured.high - measured.low == pytest.approx(2 * 1.959964 * float(error), rel=1e-9)
    wider = detection(inside[:20], outside[:12])
    assert wider.high - wider.low > 1.5 * (measured.high - measured.low)


def test_perfect_blind_and_reversed_scores() -> None:
    low, high = torch.arange(20), torch.arange(20) + 100
    perfect = detection(low, high)
    assert (perfect.auroc, perfect.low, perfect.high, perfect.fpr_at_95_tpr) == (1, 1, 1, 0)
    backwards = detection(high, low)
    assert (backwards.auroc, backwards.fpr_at_95_tpr) == (0, 1)
    blind = detection(torch.zeros(20), torch.zeros(30))
    assert (blind.auroc, blind.low, blind.high, blind.fpr_at_95_tpr) == (0.5, 0.5, 0.5, 1)


def test_one_false_alarm_in_twenty_is_allowed() -> None:
    inside = torch.cat([torch.zeros(19), torch.ones(1)])
    assert detection(inside, torch.full((4,), 0.5)).fpr_at_95_tpr == 0
    assert detection(torch.cat([inside, torch.ones(1)]), torch.full((4,), 0.5)).fpr_at_95_tpr == 1


@pytest.mark.parametrize(
    ("inside", "outside", "error", "message"),
    [
        (torch.zeros(1), torch.zeros(5), DataError, r"two or more rows of each kind, got \(1,\) in-distribution"),
        (torch.zeros(5), torch.zeros(0), DataError, r"got \(5,\) in-distribution and \(0,\) shifted"),
        (torch.zeros(5, 2), torch.zeros(5), DataError, r"detection takes \(rows,\) scores"),
        (torch.zeros(5), torch.full((3,), torch.nan), NonFiniteError, "NaN or infinity"),
    ],
)
def test_what_cannot_be_compared(
    inside: torch.Tensor, outside: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        detection(inside, outside)
