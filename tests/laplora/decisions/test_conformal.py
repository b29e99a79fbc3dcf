"""Label sets against their definition, and against their promise of coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin

from laplora.decisions.conformal import (
    conformal_threshold,
    empirical_coverage,
    fit_label_sets,
    label_sets,
    prediction_sets,
    present_sets,
)

F64 = torch.float64


def overconfident(rows: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities that are too sharp, and labels."""
    g = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(rows, classes, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=g)[:, 0]
    return torch.softmax(2 * logits, 1), labels


@pytest.mark.parametrize("score", ["lac", "interval"])
def test_sets_cover_new_rows_at_the_promised_rate(score: Any) -> None:
    level, rows, trials, fresh = 0.9, 30, 300, 60
    mask, rates = torch.ones(fresh, 4, dtype=torch.bool), []
    for trial in range(trials):
        probs, labels = overconfident(rows + fresh, 4, trial)
        sets = label_sets(score, probs[rows:], fit_label_sets(score, probs[:rows], labels[:rows], level), mask)
        rates.append(empirical_coverage(sets, labels[rows:]))
    # Coverage given a calibration split is Beta(28, 3), sd 0.053; over 300 splits the mean has sd 0.0033. Sets may
    # cover more, as each has the most probable label.
    assert sum(rates) / trials >= level - 4 * stats.beta(28, 3).std() / math.sqrt(trials)


@given(st.integers(0, 999), st.floats(0.01, 0.99))
def test_the_sets_of_an_order_are_the_shortest_intervals_around_those_without_one(seed: int, threshold: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(8, 5, generator=draw, dtype=F64)).softmax(1)
    mask = torch.arange(5) < torch.randint(2, 6, (8, 1), generator=draw)
    probs = probs.masked_fill(~mask, 0) / probs.masked_fill(~mask, 0).sum(1, keepdim=True)
    found = label_sets("interval", probs, threshold, mask)
    for row, plain in zip(found, prediction_sets(probs, threshold, mask), strict=True):
        held = plain.nonzero()[:, 0]
        assert row.nonzero()[:, 0].tolist() == list(range(int(held.min()), int(held.max()) + 1))
    whole = torch.ones_like(mask)
    turned = label_sets("interval", probs.flip(1), threshold, whole).flip(1)
    assert torch.equal(turned, label_sets("interval", probs, threshold, whole))


def test_prediction_sets_and_their_coverage() -> None:
    # 0.55 * (99 + 1) is 55.00000000000001: the 55th score is meant, not the 56th.
    p = torch.linspace(0.99, 0.01, 99, dtype=F64)
    assert conformal_threshold(torch.stack([p, 1 - p], 1), torch.zeros(99).long(), 0.55) == float(1 - p[54])
    sets, labels = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1]]).bool(), torch.tensor([0, 1, 0, 0])
    assert empirical_coverage(sets, labels) == 0.5
    probs = torch.tensor([[0.95, 0.05, 0.0], [0.5, 0.5, 0.0], [0.3, 0.4, 0.3]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    # No label of the last is as probable as the threshold asks, and still its set has the answer's.
    at_half = [[True, False, False], [True, True, False], [False, True, False]]
    assert prediction_sets(probs, 0.5, mask).tolist() == at_half
    assert present_sets("lac", torch.tensor([[0.4, 0.6], [0.6, 0.4]], dtype=F64), 0.1).tolist() == [True, False]
    # A threshold of 1 holds every possible class, and never an impossible one.
    assert torch.equal(prediction_sets(probs, 1.0, mask), mask)


def test_sets_are_those_of_mapie() -> None:
    mapie = pytest.importorskip("mapie.classification", reason="the peers are not installed: make peers")

    class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """A classifier whose rows are its probabilities."""

        fitted_, classes_ = True, np.arange(4)

        def predict_proba(self, rows: Any) -> Any:
            return rows

        def predict(self, rows: Any) -> Any:
            return rows.argmax(1)

    (probs, labels), (new, _) = overconfident(401, 4, 0), overconfident(300, 4, 1)
    oracle = mapie.SplitConformalClassifier(Given(), confidence_level=0.9, prefit=True, conformity_score="lac")
    oracle.conformalize(probs.numpy(), labels.numpy())
    sets = oracle.predict_set(new.numpy())[1][:, :, 0]
    assert 300 < sets.sum() < 1200
    ours = prediction_sets(new, conformal_threshold(probs, labels, 0.9), torch.ones(300, 4, dtype=torch.bool))
    assert torch.equal(ours, torch.from_numpy(sets))
