"""The sentence that says why an answer is accepted or reviewed: its figures, its flags, and what it does not hide."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laplora.answers.prediction import LabelArrays, Prediction
from laplora.answers.reasons import decision_reason
from laplora.decisions.thresholds import ReviewRule
from laplora.predictor import Predictor

NOTHING = "no answer is accepted: the calibration rows show none sure enough for a 5 % error rate"


def entropy(*probs: float) -> float:
    return -sum(p * math.log(p) for p in probs if p)


@pytest.fixture
def answer(sentiment_predictor: Predictor) -> Prediction:
    """An answer of 0.82, which the model alone favours too."""
    (one,) = sentiment_predictor.predict([sentiment_predictor.encode({"text": "dull"}, truncate=False)])
    probs = np.array([0.82, 0.18])
    arrays = replace(one.arrays, probs=probs, map_probs=probs)
    return replace(one, arrays=arrays, label_index=0, score=entropy(0.82, 0.18), flags=["low_confidence"])


def reason(answer: Prediction, threshold: float | None, risk: float = 0.05, **rule: object) -> str:
    update = {"threshold": threshold, "target_risk": risk, "guarantee": "empirical", "score": "total_entropy", **rule}
    return replace(answer, rule=answer.rule.model_copy(update=update)).decision_reason


def test_the_sentence_has_the_figures_that_decided(answer: Prediction) -> None:
    at = entropy(0.91, 0.09)
    assert reason(answer, at) == "0.82 is below 0.91, the threshold for a 5 % error rate"
    assert reason(answer, at, score="map_entropy").startswith("0.82 of map_probs is below 0.91, the threshold for ")
    sure = replace(answer, score=entropy(0.99998, 0.00002), flags=[])
    assert reason(sure, at, 0.125) == "0.99998 is at least 0.91000, the threshold for a 12.5 % error rate"
    assert reason(answer, entropy(0.8204, 0.1796)).startswith("0.8200 is below 0.8204")
    assert reason(answer, None) == NOTHING
    unlike = replace(answer, flags=["unfamiliar", "low_confidence"], familiarity=0.004)
    first = "unlike the training rows (farther from them than 99.6 % of the calibration rows)"
    assert reason(unlike, at) == f"{first}, and 0.82 is below 0.91, the threshold for a 5 % error rate"
    assert reason(replace(unlike, flags=["unfamiliar", "ambiguous_set"]), at) == first
    several = replace(answer, labels_present=["negative"])
    assert reason(several, at) == "0.82 of the least sure label is below 0.91, the threshold for a 5 % error rate"
    three = np.array([0.8, 0.1, 0.1])
    arrays = LabelArrays(three, three, three, {})
    more = replace(answer, labels=("a", "b", "c"), score=entropy(*three), arrays=arrays)
    assert reason(more, 0.35) == "0.80 is below 0.91, which this answer needs for a 5 % error rate"
    torn = replace(several, score=2 * math.log(2))
    assert reason(torn, 0.3, guarantee="upper_bound") == "only answers on which map_probs agree are accepted"
    disagree = replace(answer, flags=["high_epistemic"], aleatoric=0.1, epistemic=0.37)
    more_than = "disagree more than on 95 % of the calibration rows (epistemic uncertainty 0.37 nats)"
    assert reason(disagree, at) == f"plausible models {more_than}"
    both = replace(disagree, flags=["high_epistemic", "low_confidence"])
    assert reason(both, at).startswith(f"plausible models {more_than}, and 0.82 is below 0.91, ")


@given(st.lists(st.floats(-8, 8), min_size=3, max_size=9), st.floats(0.01, 2.2))
def test_both_figures_of_more_labels_say_what_the_entropy_decided(logits: list[float], threshold: float) -> None:
    probs = dict(zip("abcdefghi", np.exp(logits) / np.exp(logits).sum(), strict=False))
    label, score = max(probs, key=probs.__getitem__), entropy(*probs.values())
    answer = {"label": label, "probs": probs, "map_probs": probs, "score": score, "flags": []}
    rule = ReviewRule.model_construct(score="total_entropy", threshold=threshold, target_risk=0.05)
    mine, least = (float(one) for one in re.findall(r"[01]\.\d+", decision_reason(answer, rule)))
    assert mine == pytest.approx(probs[label], abs=0.006)
    assert mine >= least if score <= threshold else mine <= least


def test_a_model_alone_that_favours_another_label_is_not_hidden(answer: Prediction) -> None:
    other = replace(answer, predictive="laplace", arrays=replace(answer.arrays, map_probs=np.array([0.3, 0.7])))
    assert reason(other, None) == f"{NOTHING}; map_probs favours {answer.labels[1]!r}"
    bound = reason(other, 0.3, guarantee="upper_bound")
    assert bound.startswith("only answers on which map_probs agree are accepted; ")
    assert reason(replace(other, predictive="pooled"), None) == NOTHING
    certain = reason(answer, 0.3, guarantee="upper_bound", confidence=0.9)
    assert certain.endswith("the threshold for at most 5 % accepted and wrong, with 90 % confidence")
