"""Mode fast on a finished run: one forward pass, and the exact predictive where its error could decide."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from laplora import member_outputs as outputs_module
from laplora.errors import ConfigError
from laplora.predictor import Predictor
from tests.tiny_runs import BAD, GOOD, NOUNS

TEXTS = [{"text": f"The {noun} was {word}."} for noun in NOUNS[:6] for word in (*GOOD, *BAD)]


def with_error(predictor: Predictor, error: float) -> Predictor:
    """Return the predictor of the same artifact with another error on record."""
    artifact = predictor.artifact
    record = artifact.manifest.distilled
    assert record is not None
    manifest = artifact.manifest.model_copy(update={"distilled": record.model_copy(update={"error": error})})
    kept = (predictor._members, predictor._tokenizer, predictor.device, predictor.weights)
    return Predictor(dataclasses.replace(artifact, manifest=manifest), *kept)


def rows_of(predictor: Predictor) -> list[Any]:
    return [predictor.encode(text, truncate=True) for text in TEXTS]


def test_rows_near_a_threshold_are_answered_exactly(sentiment_predictor: Predictor) -> None:
    rows = rows_of(sentiment_predictor)
    fast, exact = sentiment_predictor.predict(rows, "fast"), sentiment_predictor.predict(rows, "laplace")
    places = [i for i, answer in enumerate(fast) if answer.predictive == "laplace"]
    assert {answer.predictive for answer in fast} == {"fast", "laplace"}
    for i in places:
        assert fast[i].decision == exact[i].decision
        assert fast[i].probs == pytest.approx(exact[i].probs, abs=1e-5)
        assert fast[i].logit_variance == pytest.approx(exact[i].logit_variance, rel=1e-3)
    for i in set(range(len(rows))) - set(places):
        assert fast[i].probs != exact[i].probs
        assert fast[i].logit_variance is not None
        assert fast[i].epistemic is not None


def test_deferred_rows_can_be_answered_in_batches_of_other_rows(sentiment_predictor: Predictor) -> None:
    rows = rows_of(sentiment_predictor)
    served = sentiment_predictor.predict(rows, "fast")
    answers, deferred = sentiment_predictor.predict_deferring(rows)
    assert deferred == [i for i, answer in enumerate(served) if answer.predictive == "laplace"]
    assert [answer.predictive for answer in answers] == ["fast"] * len(rows)
    assert all(answers[i] == served[i] for i in range(len(rows)) if i not in deferred)
    assert sentiment_predictor.predict_deferring([]) == ([], [])


def test_without_an_error_nothing_is_handed_over_and_more_error_hands_over_more(sentiment_predictor: Predictor) -> None:
    shares = []
    for error in (0.0, 0.2, 1.0, 3.0):
        predictor = with_error(sentiment_predictor, error)
        answers = predictor.predict(rows_of(predictor), "fast")
        shares.append({i for i, answer in enumerate(answers) if answer.predictive == "laplace"})
    assert not shares[0]
    assert len(shares[1]) <= len(shares[2]) <= len(shares[3])
    assert shares[3]


def test_what_is_kept_would_be_decided_alike_at_either_end_of_the_error(sentiment_predictor: Predictor) -> None:
    """By the library's own answers under covariances that are wrong by just that much."""
    rows, record = rows_of(sentiment_predictor), sentiment_predictor.artifact.manifest.distilled
    assert record is not None
    kept = [i for i, a in enumerate(sentiment_predictor.predict(rows, "fast")) if a.predictive == "fast"]
    members, plain = sentiment_predictor._members, with_error(sentiment_predictor, 0.0)
    assert members.distilled is not None
    own = plain.predict(rows, "fast")
    changed = 0
    for shift in (record.error, -record.error):
        moved = dataclasses.replace(members.distilled, mean=members.distilled.mean + shift)
        plain._members = dataclasses.replace(members, distilled=moved)
        for i, answer in enumerate(plain.predict(rows, "fast")):
            same = (answer.decision, answer.label_index) == (own[i].decision, own[i].label_index)
            assert same or i not in kept
            changed += not same
    assert changed


def test_the_stated_risk_moves_where_fast_is_not_trusted(sentiment_predictor: Predictor) -> None:
    rows = rows_of(sentiment_predictor)
    handed = {}
    for risk in (0.001, 0.2, 0.3, 0.4, 0.999):
        answers = sentiment_predictor.predict(rows, "fast", target_risk=risk)
        handed[risk] = {i for i, a in enumerate(answers) if a.predictive == "laplace"}
        decided, _ = sentiment_predictor.decided(answers, risk)
        exact, _ = sentiment_predictor.decided(sentiment_predictor.predict(rows, "laplace"), risk)
        for i in handed[risk]:
            assert decided[i].decision == exact[i].decision
    assert len({frozenset(places) for places in handed.values()}) > 1


def test_one_forward_pass_unless_rows_are_handed_over(
    sentiment_predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    for function in ("last_hidden", "contrast_jacobians"):
        original = getattr(outputs_module, function)

        def call(*arguments: Any, _name: str = function, _original: Any = original, **options: Any) -> Any:
            seen.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(outputs_module, function, call)
    sure = with_error(sentiment_predictor, 0.0)
    sure.predict(rows_of(sure), "fast")
    assert seen == ["last_hidden"]
    sentiment_predictor.predict(rows_of(sentiment_predictor), "fast")
    assert seen == ["last_hidden", "last_hidden", "contrast_jacobians"]


def test_it_is_no_default_and_averages_no_orders(choices_predictor: Predictor) -> None:
    assert choices_predictor.recommended != "fast"
    assert "fast" not in choices_predictor.artifact.manifest.recommended.table
    inputs = {"question": "Is a dull plot good?", "choices": ["good", "bad", "neither of them"]}
    asked = choices_predictor.encode_orders(inputs, truncate=True)
    with pytest.raises(ConfigError, match="orders"):
        choices_predictor.predict_orders([asked], "fast")
    (answer,) = choices_predictor.predict([choices_predictor.encode(inputs, truncate=True)], "fast")
    assert answer.logit_covariance is not None
    assert len(answer.logit_covariance) == 3
