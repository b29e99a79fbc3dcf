"""Metrics against scipy and pair-by-pair loops, at their edges, and under reordering."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.errors import ConfigError, DataError
from laplora.metrics.ranking import error_auprc, error_auroc, risk_coverage
from laplora.metrics.scores import (
    accuracy,
    bootstrap_interval,
    brier,
    ece,
    evaluate_probs,
    nll,
    reliability_bins,
)

F64 = torch.float64


def random_rows(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities and labels drawn from them: a calibrated classifier."""
    g = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(rows, classes, generator=g, dtype=F64), 1)
    return probs, torch.multinomial(probs, 1, generator=g)[:, 0]


def test_hand_computed_values() -> None:
    probs = torch.tensor([[0.8, 0.2, 0.0], [0.3, 0.4, 0.3], [0.1, 0.0, 0.9]], dtype=F64)
    labels = torch.tensor([0, 2, 2])
    assert accuracy(probs, labels) == pytest.approx(2 / 3)
    assert nll(probs, labels) == pytest.approx(-(math.log(0.8) + math.log(0.3) + math.log(0.9)) / 3)
    # Summed over classes, mean over rows.
    assert brier(probs, labels) == pytest.approx(((0.04 + 0.04) + (0.09 + 0.16 + 0.49) + (0.01 + 0.01)) / 3)
    # Three rows, three bins: the gaps are 0.2, 0.4 and 0.1.
    assert ece(probs, labels) == pytest.approx((0.2 + 0.4 + 0.1) / 3)


def test_confidence_one_is_in_the_last_bin_and_counts() -> None:
    """The known mistake: with half-open bins [a, b) every row of confidence 1 falls out, and a perfectly
    confident, always wrong classifier looks perfectly calibrated."""
    probs = torch.tensor([[1.0, 0.0]] * 4, dtype=F64)
    wrong = torch.ones(4, dtype=torch.int64)
    table = reliability_bins(probs, wrong)
    assert [b.count for b in table] == [0] * 14 + [4]
    assert table[-1].confidence == 1.0
    assert table[-1].accuracy == 0.0
    assert ece(probs, wrong) == 1.0
    assert ece(probs, 1 - wrong) == 0.0


def test_bins_are_closed_on_the_right_and_hold_every_row() -> None:
    edges = torch.arange(8, 16, dtype=F64) / 15  # exact bin edges above one half
    probs = torch.stack([edges, 1 - edges], 1)
    table = reliability_bins(probs, torch.zeros(8, dtype=torch.int64))
    assert [b.count for b in table] == [0] * 7 + [1] * 8
    assert (table[0].lower, table[-1].upper, len(table)) == (0.0, 1.0, 15)
    assert table[0].confidence is None
    assert table[0].accuracy is None
    # Many classes can have a confidence in the first bin.
    many = torch.full((3, 40), 1 / 40, dtype=F64)
    assert reliability_bins(many, torch.zeros(3, dtype=torch.int64))[0].count == 3


@given(rows=st.integers(1, 60), classes=st.integers(2, 6), bins=st.integers(1, 20), seed=st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_ece_is_the_loop_over_bins(rows: int, classes: int, bins: int, seed: int) -> None:
    probs, labels = random_rows(rows, classes, seed)
    confidence, predicted = probs.max(1)
    total = 0.0
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        inside = [r for r in range(rows) if low < confidence[r] <= high or (i == 0 and confidence[r] == 0)]
        if inside:
            gap = sum(float(predicted[r] == labels[r]) - float(confidence[r]) for r in inside)
            total += abs(gap) / rows
    # Sums of at most 60 numbers in another order.
    assert ece(probs, labels, bins) == pytest.approx(total, abs=1e-12)
    assert sum(b.count for b in reliability_bins(probs, labels, bins)) == rows


@given(rows=st.integers(2, 40), classes=st.integers(2, 5), seed=st.integers(0, 9999))
@settings(max_examples=40, deadline=None)
def test_order_of_rows_and_names_of_classes_do_not_matter(rows: int, classes: int, seed: int) -> None:
    probs, labels = random_rows(rows, classes, seed)
    g = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(rows, generator=g), torch.randperm(classes, generator=g)
    moved_probs, moved_labels = probs[order][:, names], names.argsort()[labels[order]]
    for metric in (accuracy, nll, ece, brier):
        # Sums in another order.
        assert metric(moved_probs, moved_labels) == pytest.approx(metric(probs, labels), abs=1e-12)


def test_an_impossible_class_adds_nothing_and_a_zero_probability_stays_finite() -> None:
    probs, labels = random_rows(30, 3, seed=1)
    wider = torch.cat([probs, torch.zeros(30, 2, dtype=F64)], 1)
    for metric in (accuracy, nll, ece, brier):
        assert metric(wider, labels) == metric(probs, labels)
    sure = torch.tensor([[1.0, 0.0]], dtype=F64)
    assert nll(sure, torch.tensor([1])) == pytest.approx(708.396, abs=1e-3)  # -ln of the smallest normal float64


def test_bootstrap_covers_a_known_mean_and_repeats() -> None:
    g = torch.Generator().manual_seed(0)
    covered = 0
    for sample in torch.randn(100, 60, generator=g, dtype=F64):

        def mean(i: torch.Tensor, sample: torch.Tensor = sample) -> float:
            return float(sample[i].mean())

        low, high = bootstrap_interval(mean, 60, resamples=200, generator=g)
        covered += low <= 0 <= high
    # Nominal 95 of 100, a little under for a percentile interval at 60 rows; 86 is four sigma below 95.
    assert 86 <= covered <= 100
    values = torch.arange(20, dtype=F64)
    first, second = (
        bootstrap_interval(lambda i: float(values[i].mean()), 20, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first == second


def test_bootstrap_leaves_nan_resamples_out() -> None:
    g = torch.Generator().manual_seed(0)
    low, high = bootstrap_interval(lambda i: math.nan if 0 in i else 1.0, 5, generator=g)
    assert (low, high) == (1.0, 1.0)
    with pytest.raises(DataError, match="every resample"):
        bootstrap_interval(lambda i: math.nan, 5, generator=g)


def test_evaluate_agrees_with_the_single_metrics_and_is_json() -> None:
    probs, labels = random_rows(300, 4, seed=7)
    got = evaluate_probs(probs, labels, resamples=200)
    errors = probs.argmax(1) != labels
    score = torch.special.entr(probs).sum(1)
    assert got.rows == 300
    assert got.accuracy == accuracy(probs, labels)
    assert got.nll == nll(probs, labels)
    assert got.ece == ece(probs, labels)
    assert got.brier == brier(probs, labels)
    assert got.auroc_error == error_auroc(score, errors)
    assert got.auprc_error == error_auprc(score, errors)
    assert got.aurc == risk_coverage(score, errors).area
    assert set(got.intervals) == {"accuracy", "nll", "ece", "brier", "auroc_error", "auprc_error", "aurc"}
    for name, (low, high) in got.intervals.items():
        assert low < high
        # ECE is biased upward by resampling, so its own value may lie below; the others lie inside.
        assert getattr(got, name) <= high
        assert name == "ece" or low <= getattr(got, name)
    as_json = json.loads(json.dumps(got.to_json(), allow_nan=False))
    assert as_json["nll"] == got.nll
    assert as_json["auprc_error"] == got.auprc_error
    assert (as_json["aurc"], as_json["excess_aurc"]) == (got.aurc, got.excess_aurc)
    assert len(as_json["reliability"]) == 15
    assert len(as_json["risk_coverage"]["risk"]) == 200
    assert as_json["risk_coverage"]["coverage"][-1] == 1.0
    assert evaluate_probs(probs, labels, resamples=200).intervals == got.intervals


def test_evaluate_intervals_are_those_of_the_public_metrics() -> None:
    """The fast per-row statistics inside evaluate_probs resample exactly what the public functions return."""
    probs, labels = random_rows(40, 3, seed=2)
    got = evaluate_probs(probs, labels, resamples=50, seed=9)
    score = torch.special.entr(probs).sum(1)
    errors = probs.argmax(1) != labels
    slow = {
        "accuracy": lambda i: accuracy(probs[i], labels[i]),
        "nll": lambda i: nll(probs[i], labels[i]),
        "ece": lambda i: ece(probs[i], labels[i]),
        "brier": lambda i: brier(probs[i], labels[i]),
        "auroc_error": lambda i: error_auroc(score[i], errors[i]) or math.nan,
        "auprc_error": lambda i: error_auprc(score[i], errors[i]) or math.nan,
        "aurc": lambda i: risk_coverage(score[i], errors[i]).area,
    }
    for name, statistic in slow.items():
        expected = bootstrap_interval(statistic, 40, resamples=50, generator=torch.Generator().manual_seed(9))
        # Sums in another order.
        assert got.intervals[name] == pytest.approx(expected, abs=1e-12)


def test_evaluate_edges() -> None:
    one = evaluate_probs(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), resamples=10)
    assert one.auroc_error is None
    assert "auroc_error" not in one.intervals
    assert one.to_json()["auroc_error"] is None
    assert one.to_json()["auprc_error"] is None
    assert one.to_json()["excess_aurc"] == 0.0
    assert evaluate_probs(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), resamples=0).intervals == {}
    probs, labels = random_rows(50, 2, seed=1)
    inverted = evaluate_probs(probs, labels, -torch.special.entr(probs).sum(1), resamples=0)
    plain = evaluate_probs(probs, labels, resamples=0)
    assert plain.auroc_error is not None
    assert inverted.auroc_error == pytest.approx(1 - plain.auroc_error)


def test_refusals() -> None:
    probs, labels = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    for metric in (accuracy, nll, ece, brier, reliability_bins, evaluate_probs):
        with pytest.raises(DataError, match="not logits"):
            metric(torch.tensor([[3.0, -1.0]]), labels)
    with pytest.raises(ConfigError, match="bins"):
        ece(probs, labels, 0)
    with pytest.raises(ConfigError, match="level"):
        bootstrap_interval(lambda i: 0.0, 3, level=1.0, generator=torch.Generator())
    with pytest.raises(DataError, match="one row"):
        bootstrap_interval(lambda i: 0.0, 0, generator=torch.Generator())
