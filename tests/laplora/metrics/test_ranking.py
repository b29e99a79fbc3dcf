"""Ranking of mistakes against pair-by-pair loops and scipy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from laplora.metrics.ranking import error_auprc, error_auroc, risk_coverage

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
