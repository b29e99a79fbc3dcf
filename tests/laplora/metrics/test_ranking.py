"""Ranking of mistakes against pair-by-pair loops and scipy, at their edges, and under reordering."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from laplora.errors import DataError
from laplora.metrics.ranking import compare_auroc, error_auprc, error_auroc, risk_coverage

F64 = torch.float64


@given(
    pairs=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 2.0]), st.booleans()), min_size=1, max_size=40)
)
@settings(max_examples=100, deadline=None)
def test_auroc_with_ties_is_the_pairwise_definition_and_mann_whitney(pairs: list[tuple[float, bool]]) -> None:
    score = torch.tensor([s for s, _ in pairs], dtype=F64)
    errors = torch.tensor([e for _, e in pairs])
    got = error_auroc(score, errors)
    wrong, right = score[errors], score[~errors]
    if not len(wrong) or not len(right):
        assert got is None
        return
    assert got is not None
    wins = (wrong[:, None] > right).double() + 0.5 * (wrong[:, None] == right).double()
    # Counts of halves are exact; one division.
    assert got == pytest.approx(float(wins.mean()), abs=1e-14)
    u = stats.mannwhitneyu(wrong.numpy(), right.numpy(), method="asymptotic").statistic
    assert got == pytest.approx(u / (len(wrong) * len(right)), abs=1e-14)
    turned = error_auroc(-score, errors)
    assert turned is not None
    assert turned == pytest.approx(1 - got, abs=1e-14)
    # Ranks only: a monotone map changes nothing.
    assert error_auroc(score.exp(), errors) == got


@given(scores=st.lists(st.integers(0, 4), min_size=1, max_size=30), seed=st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_risk_coverage_is_the_mean_curve_over_random_tie_orders(scores: list[int], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    score = torch.tensor(scores, dtype=F64)
    errors = torch.rand(len(scores), generator=g) < 0.4
    curve = risk_coverage(score, errors)
    n = len(scores)
    assert curve.coverage[-1] == 1
    # The full set's risk is the error rate, whatever the score.
    assert float(curve.risk[-1]) == pytest.approx(float(errors.double().mean()), abs=1e-12)
    assert curve.area == pytest.approx(float(curve.risk.mean()))
    order = torch.randperm(n, generator=g)
    again = risk_coverage(score[order], errors[order])
    torch.testing.assert_close(again.risk, curve.risk, atol=0, rtol=0)
    for k in range(1, n + 1):
        last = score.sort().values[k - 1]
        sure, tied = score < last, score == last
        expected = errors[sure].sum() + (k - sure.sum()) * errors[tied].double().mean()
        assert float(curve.risk[k - 1]) == pytest.approx(float(expected) / k, abs=1e-12)


def test_risk_coverage_answers_low_scores_first() -> None:
    curve = risk_coverage(torch.tensor([0.9, 0.1, 0.5]), torch.tensor([True, False, False]))
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3])


@given(scores=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.7, 2.0]), min_size=2, max_size=40), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_average_precision_with_ties_is_the_sum_over_distinct_scores(scores: list[float], seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    score = torch.tensor(scores, dtype=F64)
    errors = torch.rand(len(scores), generator=g) < 0.3
    got = error_auprc(score, errors)
    if not errors.any():
        assert got is None
        return
    wanted = 0.0
    for value in set(scores):
        flagged, here = score >= value, score == value
        wanted += int(errors[here].sum()) / int(errors.sum()) * float(errors[flagged].double().mean())
    assert got == pytest.approx(wanted, abs=1e-12)
    order = torch.randperm(len(scores), generator=g)
    assert error_auprc(score[order], errors[order]) == got
    constant = error_auprc(torch.zeros(len(scores)), errors)
    assert constant == pytest.approx(float(errors.double().mean()))


def test_a_perfect_ranking_has_no_excess_and_the_worst_one_the_most() -> None:
    errors = torch.tensor([False] * 7 + [True] * 3)
    perfect = risk_coverage(torch.arange(10.0), errors)
    assert perfect.excess == 0.0
    # Risk is 0 up to coverage 0.7, then 1/8, 2/9, 3/10.
    assert perfect.area == pytest.approx((1 / 8 + 2 / 9 + 3 / 10) / 10)
    worst = risk_coverage(-torch.arange(10.0), errors)
    assert worst.area == pytest.approx((3 + sum(3 / k for k in range(4, 11))) / 10)
    assert worst.excess == pytest.approx(worst.area - perfect.area)
    none = risk_coverage(torch.arange(10.0), torch.zeros(10, dtype=torch.bool))
    assert (none.area, none.excess) == (0.0, 0.0)


@given(seed=st.integers(0, 9999), rows=st.integers(5, 40))
@settings(max_examples=40, deadline=None)
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
    assert compare_auroc(second, first, errors) == pytest.approx((-lead, error), abs=1e-12)
    assert compare_auroc(first, first, errors) == (0.0, 0.0)


def test_the_leads_error_is_its_spread_over_samples() -> None:
    g = torch.Generator().manual_seed(1)
    leads, errors_of = [], []
    for _ in range(400):
        wrong = torch.arange(150) < 25
        shared = torch.randn(150, generator=g, dtype=F64)
        first, second = (wrong + shared + 0.7 * torch.randn(150, generator=g, dtype=F64) for _ in range(2))
        lead, error = compare_auroc(first, second, wrong)
        leads.append(lead)
        errors_of.append(error)
    spread = float(torch.tensor(leads).std())
    # A standard deviation from 400 draws is right to 1 / sqrt(800), 3.5 %; four times that.
    assert sum(errors_of) / 400 == pytest.approx(spread, rel=0.14)


def test_refusals() -> None:
    for ranking in (error_auroc, error_auprc, risk_coverage):
        with pytest.raises(DataError, match="bool"):
            ranking(torch.zeros(1), torch.zeros(1))
    with pytest.raises(DataError, match="two mistakes"):
        compare_auroc(torch.zeros(3), torch.zeros(3), torch.tensor([True, False, False]))
