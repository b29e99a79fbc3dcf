"""The sentence that says why an answer is accepted or reviewed: its figures, its flags, and what it does not hide."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from laplora.answers.prediction import LabelArrays, Prediction
from laplora.predictor import Predictor


def entropy(*probs: float) -> float:
    return -sum(p * math.log(p) for p in probs)


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
    assert (
        reason(answer, at, score="map_entropy") == "0.82 of map_probs is below 0.91, the threshold for a 5 % error rate"
    )
    sure = replace(answer, score=entropy(0.99998, 0.00002), flags=[])
    assert reason(sure, at, 0.125) == "0.99998 is at least 0.91000, the threshold for a 12.5 % error rate"
    assert reason(answer, entropy(0.8204, 0.1796)).startswith("0.8200 is below 0.8204")
    assert reason(answer, None) == "no threshold reaches 5 %"
    unlike = replace(answer, flags=["unfamiliar", "low_confidence"], familiarity=0.004)
    first = "unlike the training rows (p = 0.004)"
    assert reason(unlike, at) == f"{first}, and 0.82 is below 0.91, the threshold for a 5 % error rate"
    assert reason(replace(unlike, flags=["unfamiliar", "ambiguous_set"]), at) == first
    several = replace(answer, labels_present=["negative"])
    assert reason(several, at) == "0.82 of the least sure label is below 0.91, the threshold for a 5 % error rate"
    three = np.array([0.8, 0.1, 0.1])
    arrays = LabelArrays(map_probs=three, probs=three, probs_std=three, calibrated_probs={})
    more = replace(answer, labels=("a", "b", "c"), score=0.6, arrays=arrays)
    assert reason(more, 0.35) == "the entropy, 0.60 nats, is above 0.35, the threshold for a 5 % error rate"


def test_a_model_alone_that_favours_another_label_is_not_hidden(answer: Prediction) -> None:
    other = replace(answer, predictive="laplace", arrays=replace(answer.arrays, map_probs=np.array([0.3, 0.7])))
    assert reason(other, None) == f"no threshold reaches 5 %; map_probs favours {answer.labels[1]!r}"
    bound = reason(other, 0.3, guarantee="upper_bound")
    assert bound.startswith("only answers on which map_probs agree are accepted; ")
    assert reason(replace(other, predictive="pooled"), None) == "no threshold reaches 5 %"
    certain = reason(answer, 0.3, guarantee="upper_bound", confidence=0.9)
    assert certain.endswith("the threshold for at most 5 % accepted and wrong, with 90 % confidence")
