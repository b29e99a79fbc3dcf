"""Ranking of mistakes and of shifted rows against pair-by-pair loops and scipy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from laplora.metrics.ranking import compare_auroc, error_auprc, error_auroc, risk_coverage

F64 = torch.float64
#: Rows: a score, of few different ones, and whether it is a mistake.
ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 2.0]), st.booleans()), min_size=1, max_size=40)


def columns(rows: list[tuple[float, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([s for s, _ in rows], dtype=F64), torch.tensor([e for _, e in rows])


@given(rows=ROWS)
def test_auroc_with_ties_is_mann_whitneys(rows: list[tuple[float, bool]]) -> None:
    score, errors = columns(rows)
    got = error_auroc(score, errors)
    wrong, right = score[errors], score[~errors]
    if not len(wrong) or not len(right):
        assert got is None
        return
    u = stats.mannwhitneyu(wrong.numpy(), right.numpy(), method="asymptotic").statistic
    assert got == pytest.approx(u / (len(wrong) * len(right)), abs=1e-14)


@given(rows=ROWS)
def test_risk_coverage_is_the_mean_curve_over_random_tie_orders(rows: list[tuple[float, bool]]) -> None:
    score, errors = columns(rows)
    curve = risk_coverage(score, errors)
    assert curve.coverage[-1] == 1
    assert curve.area == pytest.approx(float(curve.risk.mean()))
    for k in range(1, len(rows) + 1):
        last = score.sort().values[k - 1]
        sure, tied = score < last, score == last
        expected = errors[sure].sum() + (k - sure.sum()) * errors[tied].double().mean()
        assert float(curve.risk[k - 1]) == pytest.approx(float(expected) / k, abs=1e-12)


@given(rows=ROWS)
def test_average_precision_with_ties_is_the_sum_over_distinct_scores(rows: list[tuple[float, bool]]) -> None:
    score, errors = columns(rows)
    got = error_auprc(score, errors)
    if not errors.any():
        assert got is None
        return
    wanted = sum(float(errors[score == v].sum() * errors[score >= v].double().mean()) for v in score.unique())
    assert got == pytest.approx(wanted / int(errors.sum()), abs=1e-12)


def test_a_perfect_ranking_has_no_excess_and_the_worst_one_the_most() -> None:
    errors = torch.tensor([False] * 7 + [True] * 3)
    perfect = risk_coverage(torch.arange(10.0), errors)
    assert perfect.excess == 0.0
    # Risk is 0 up to coverage 0.7, then 1/8, 2/9, 3/10.
    assert perfect.area == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 10)
    worst = risk_coverage(-torch.arange(10.0), errors)
    assert worst.area == pytest.approx((3 + sum(3 / k for k in range(4, 11))) / 10)
    assert worst.excess == pytest.approx(worst.area - perfect.area)


@given(seed=st.integers(0, 9999), rows=st.integers(5, 40))
@settings(max_examples=40)
def test_the_lead_is_the_difference_and_its_error_the_loop_over_pairs(seed: int, rows: int) -> None:
    g = torch.Generator().manual_seed(seed)
    first, second = (2 * torch.randn(2, rows, generator=g, dtype=F64)).round()  # with ties
    errors = torch.arange(rows) % 2 == 0
    lead, error = compare_auroc(first, second, errors)
    assert lead == pytest.approx((error_auroc(first, errors) or 0.0) - (error_auroc(second, errors) or 0.0), abs=1e-12)
    verdict = [(s[errors][:, None] - s[~errors][None]).sign() / 2 for s in (first, second)]
    d = verdict[0] - verdict[1]
    variance = d.mean(1).var() / d.shape[0] + d.mean(0).var() / d.shape[1]
    assert error == pytest.approx(math.sqrt(float(variance)), abs=1e-12)


# Few different values, so that most rows are tied with others.
SCORES = st.lists(st.integers(0, 6), min_size=2, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64) / 4)


def apart(inside: torch.Tensor, outside: torch.Tensor) -> tuple[float, float]:
    """Return how far above 1/2 the AUROC is by which a score tells rows apart, and its standard error."""
    score = torch.cat([inside, outside])
    return compare_auroc(score, torch.zeros_like(score), torch.arange(len(score)) >= len(inside))


@given(inside=SCORES, outside=SCORES)
def test_the_area_is_that_of_the_definition(inside: torch.Tensor, outside: torch.Tensor) -> None:
    lead, error = apart(inside, outside)
    pairs = [(o > i) + (o == i) / 2 for i, o in itertools.product(inside.tolist(), outside.tolist())]
    assert 0.5 + lead == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert error >= 0


def test_the_interval_is_delongs() -> None:
    """Against the formula on placements, written out."""
    draw = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(80, generator=draw).double(), torch.randn(50, generator=draw).double() + 1
    _, found = apart(inside, outside)
    wins = (outside[:, None] > inside[None, :]).double()
    error = (wins.mean(1).var() / 50 + wins.mean(0).var() / 80).sqrt()
    assert found == pytest.approx(float(error), rel=1e-9)
    assert apart(torch.arange(20.0), torch.arange(20.0) + 100) == (0.5, 0)
