"""Metrics by hand and against loops, at their edges, and under reordering; what is refused, of decisions too."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.decisions.conformal import conformal_threshold, empirical_coverage
from laplora.decisions.temperature import fit_temperature, temperature_probs
from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.metrics.checks import checked_column, checked_labels, checked_probs, checked_score
from laplora.metrics.checks import checked_values as values
from laplora.metrics.ranking import error_auprc, error_auroc, risk_coverage
from laplora.metrics.scores import (
    accuracy,
    bootstrap_interval,
    brier,
    ece,
    evaluate_probs,
    nll,
    order_errors,
    reliability_bins,
)
from laplora.readouts.label_sequences import LabelSequences

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
    sure = torch.tensor([[1.0, 0.0]], dtype=F64)
    assert nll(sure, torch.tensor([1])) == pytest.approx(708.396, abs=1e-3)  # -ln of the smallest normal float64


def test_bins_are_closed_on_the_right_and_hold_every_row() -> None:
    """A confidence of 1 is in the last bin: without it, a sure classifier that is always wrong looks calibrated."""
    edges = torch.arange(8, 16, dtype=F64) / 15  # exact bin edges above one half
    table = reliability_bins(torch.stack([edges, 1 - edges], 1), torch.ones(8, dtype=torch.int64))
    assert [b.count for b in table] == [0] * 7 + [1] * 8
    assert (table[0].lower, table[-1].upper, len(table)) == (0.0, 1.0, 15)
    assert (table[0].confidence, table[0].accuracy) == (None, None)
    assert (table[-1].confidence, table[-1].accuracy) == (1.0, 0.0)
    # Many classes can have a confidence in the first bin.
    many = torch.full((3, 40), 1 / 40, dtype=F64)
    assert reliability_bins(many, torch.zeros(3, dtype=torch.int64))[0].count == 3


@given(rows=st.integers(1, 60), classes=st.integers(2, 6), bins=st.integers(1, 20), seed=st.integers(0, 9999))
@settings(max_examples=60)
def test_ece_is_the_loop_over_bins(rows: int, classes: int, bins: int, seed: int) -> None:
    probs, labels = random_rows(rows, classes, seed)
    confidence, predicted = probs.max(1)
    right, total = predicted == labels, 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        total += abs(float((right[inside].double() - confidence[inside]).sum())) / rows
    # Sums of at most 60 numbers in another order.
    assert ece(probs, labels, bins) == pytest.approx(total, abs=1e-12)


@given(rows=st.integers(2, 40), classes=st.integers(2, 5), seed=st.integers(0, 9999))
@settings(max_examples=40)
def test_order_of_rows_names_of_classes_and_impossible_ones_do_not_matter(rows: int, classes: int, seed: int) -> None:
    probs, labels = random_rows(rows, classes, seed)
    g = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(rows, generator=g), torch.randperm(classes, generator=g)
    moved_probs, moved_labels = probs[order][:, names], names.argsort()[labels[order]]
    wider = torch.cat([moved_probs, torch.zeros(rows, 2, dtype=F64)], 1)
    for metric in (accuracy, nll, ece, brier):
        # Sums in another order.
        assert metric(wider, moved_labels) == pytest.approx(metric(probs, labels), abs=1e-12)


def test_the_bootstrap_interval_is_of_the_resamples_quantiles_without_nan() -> None:
    resampled = iter([*range(1001), *[math.nan] * 10])

    def of_each(drawn: torch.Tensor) -> torch.Tensor:
        return torch.tensor([next(resampled) for _ in drawn])

    low, high = bootstrap_interval(of_each, 5, resamples=1011, generator=torch.Generator())
    assert (low, high) == pytest.approx((25, 975))
    with pytest.raises(DataError, match="every resample"):
        bootstrap_interval(lambda drawn: torch.full((len(drawn),), math.nan), 5, generator=torch.Generator())


def test_evaluation_and_intervals_are_those_of_the_public_metrics() -> None:
    probs, labels = random_rows(300, 3, seed=2)
    got = evaluate_probs(probs, labels, resamples=50, seed=9)
    score, errors = torch.special.entr(probs).sum(1), probs.argmax(1) != labels
    metrics = {
        "accuracy": lambda i: accuracy(probs[i], labels[i]),
        "nll": lambda i: nll(probs[i], labels[i]),
        "ece": lambda i: ece(probs[i], labels[i]),
        "brier": lambda i: brier(probs[i], labels[i]),
        "auroc_error": lambda i: error_auroc(score[i], errors[i]) or math.nan,
        "auprc_error": lambda i: error_auprc(score[i], errors[i]) or math.nan,
        "aurc": lambda i: risk_coverage(score[i], errors[i]).area,
    }
    as_json = json.loads(json.dumps(got.to_json(), allow_nan=False))
    assert as_json["rows"] == 300
    assert set(as_json["intervals"]) == set(metrics) - {"ece"}
    for name, metric in metrics.items():
        assert as_json[name] == getattr(got, name) == metric(torch.arange(300))
        if name == "ece":
            continue

        def of_each(drawn: torch.Tensor, metric: Any = metric) -> torch.Tensor:
            return torch.tensor([metric(rows) for rows in drawn], dtype=F64)

        interval = bootstrap_interval(of_each, 300, resamples=50, generator=torch.Generator().manual_seed(9))
        # Sums in another order.
        assert as_json["intervals"][name] == pytest.approx(interval, abs=1e-12)
    assert as_json["excess_aurc"] == risk_coverage(score, errors).excess
    assert [len(as_json["reliability"]), len(as_json["risk_coverage"]["risk"])] == [15, 200]


def test_errors_in_an_order_are_by_places() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    found = order_errors(probs, labels)
    first, second = 0.3**2 + 0.1**2, 0.1**2 + 0.8**2 + 0.6**2
    assert found == {"mae": 1.0, "rps": pytest.approx((first + second) / 6)}
    turned = order_errors(probs.flip(1), 3 - labels)
    assert turned == {"mae": 1.0, "rps": pytest.approx(found["rps"])}
    assert order_errors(probs, probs) == {"mae": 0.0, "rps": 0.0}  # soft labels that answers equal
    assert order_errors(probs[:, :2] / probs[:, :2].sum(1, keepdim=True), labels)["rps"] == pytest.approx(
        brier(probs[:, :2] / probs[:, :2].sum(1, keepdim=True), labels) / 2
    )
    with_order = evaluate_probs(probs, labels, resamples=0, ordered=True)
    assert (with_order.mae, with_order.rps) == (1.0, found["rps"])
    plain = evaluate_probs(probs, labels, resamples=0)
    assert (plain.mae, plain.rps) == (None, None)
    assert with_order.to_json().keys() - plain.to_json().keys() == {"mae", "rps"}


def test_evaluate_edges() -> None:
    one = evaluate_probs(torch.tensor([[0.9, 0.1]]), torch.tensor([0]), resamples=10)
    assert "auroc_error" not in one.intervals
    assert (one.auroc_error, one.auprc_error, one.to_json()["excess_aurc"]) == (None, None, 0.0)
    probs, labels = random_rows(50, 2, seed=1)
    inverted = evaluate_probs(probs, labels, -torch.special.entr(probs).sum(1), resamples=0)
    assert inverted.auroc_error == pytest.approx(1 - (evaluate_probs(probs, labels, resamples=0).auroc_error or 0))
    with pytest.raises(DataError, match="not logits"):
        evaluate_probs(4 * probs, labels)
    with pytest.raises(ConfigError, match="bins"):
        ece(probs, labels, 0)


HALVES, ZERO, MASK = torch.tensor([[0.5, 0.5]]), torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool)
RIGHT = torch.tensor([False])


@pytest.mark.parametrize(
    ("check", "arguments", "error", "message"),
    [
        (checked_column, (torch.zeros(0), "x"), DataError, "x must be .* at least one row"),
        (checked_score, (torch.zeros(2), RIGHT), DataError, "score must be"),
        (checked_score, (torch.zeros(1), torch.zeros(1)), DataError, "errors must be bool"),
        (checked_score, (torch.tensor([math.inf]), RIGHT), NonFiniteError, "score holds"),
        (values, (HALVES, MASK.double()), DataError, "bool mask"),
        (values, (HALVES, ~MASK), DataError, "at least one possible class"),
        (values, (HALVES * math.nan, MASK), NonFiniteError, "a possible class"),
        (checked_labels, (torch.tensor([0, 1]), MASK), DataError, r"labels must be \(1,\)"),
        (checked_labels, (torch.tensor([0.0]), MASK), DataError, "integers"),
        (checked_labels, (torch.tensor([2]), MASK), DataError, "from 0 to 1"),
        (checked_labels, (torch.tensor([1]), torch.tensor([[True, False]])), DataError, "possible classes"),
        (checked_probs, (torch.ones(1, 1), ZERO), DataError, "two classes or more"),
        (checked_probs, (torch.tensor([[3.0, -1.0]]), ZERO), DataError, "not logits"),
        (checked_probs, (torch.tensor([[math.nan, 1.0]]), ZERO), NonFiniteError, "probs holds"),
        (conformal_threshold, (HALVES, ZERO, 1.0), ConfigError, "level"),
        (empirical_coverage, (HALVES, ZERO), DataError, "bool"),
        (fit_temperature, (HALVES, torch.tensor([1]), torch.tensor([[True, False]])), DataError, "possible"),
        (temperature_probs, (HALVES, 0.0, MASK), ConfigError, "positive"),
        (LabelSequences, (((1, 2), (1, 2)),), ConfigError, "different sequences of one token or more"),
    ],
)
def test_what_is_refused(check: Any, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(*arguments)
