"""Mode fast on a finished run: one forward pass, and the exact predictive where its error could decide."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from plain_model import passes_seen
from tiny_runs import BAD, GOOD, NOUNS

from laplora.answers.prediction import Prediction
from laplora.predictor import Predictor

TEXTS = [{"text": f"The {noun} was {word}."} for noun in NOUNS[:6] for word in (*GOOD, *BAD)]


def sure_of(predictor: Predictor, *, all_familiar: bool) -> Predictor:
    """Return the predictor of the same artifact whose kernel machine never errs, and which may know every input."""
    members = predictor._members
    assert members.distilled is not None
    assert members.familiarity is not None
    error = dataclasses.replace(members.distilled.error, scale=torch.zeros((), dtype=torch.float64))
    distilled = dataclasses.replace(members.distilled, error=error)
    familiarity = members.familiarity
    if all_familiar:
        familiarity = dataclasses.replace(familiarity, reference=familiarity.reference + torch.inf)
    kept = (predictor._tokenizer, predictor.device, predictor.base, predictor.review_scores)
    changed = dataclasses.replace(members, distilled=distilled, familiarity=familiarity)
    return Predictor(predictor.artifact, changed, *kept)


def rows_of(predictor: Predictor) -> list[Any]:
    return [predictor.encode(text, truncate=True) for text in TEXTS]


def deferred_by(answers: list[Prediction]) -> list[int]:
    """Return the places of the answers that ``laplace`` gave."""
    return [i for i, answer in enumerate(answers) if answer.predictive == "laplace"]


def test_rows_near_a_threshold_are_answered_exactly(sentiment_predictor: Predictor) -> None:
    rows = rows_of(sentiment_predictor)
    fast, exact = sentiment_predictor.predict(rows, "fast"), sentiment_predictor.predict(rows, "laplace")
    places = deferred_by(fast)
    assert {answer.predictive for answer in fast} == {"fast", "laplace"}
    for i in places:
        assert fast[i].decision == exact[i].decision
        assert fast[i].probs == pytest.approx(exact[i].probs, abs=1e-5)
        assert fast[i].logit_variance == pytest.approx(exact[i].logit_variance, rel=1e-3)
    for i in set(range(len(rows))) - set(places):
        assert fast[i].probs != exact[i].probs
        assert None not in (fast[i].logit_variance, fast[i].epistemic)


def test_deferred_rows_can_be_answered_in_batches_of_other_rows(sentiment_predictor: Predictor) -> None:
    rows = rows_of(sentiment_predictor)
    served = sentiment_predictor.predict(rows, "fast")
    answers, deferred = sentiment_predictor.predict_deferring(rows)
    assert deferred == deferred_by(served)
    assert [answer.predictive for answer in answers] == ["fast"] * len(rows)
    assert all(answers[i] == served[i] for i in range(len(rows)) if i not in deferred)
    assert sentiment_predictor.predict_deferring([]) == ([], [])


def test_what_is_kept_would_be_decided_alike_at_either_end_of_the_rows_own_error(
    sentiment_predictor: Predictor,
) -> None:
    """By the library's answers under covariances that are wrong by just that much."""
    rows = rows_of(sentiment_predictor)
    kept = [i for i, a in enumerate(sentiment_predictor.predict(rows, "fast")) if a.predictive == "fast"]
    plain = sure_of(sentiment_predictor, all_familiar=True)
    estimate = sentiment_predictor._outputs(rows, ["fast"]).estimate
    assert estimate is not None
    assert len(set(estimate.log_error.tolist())) > len(rows) // 2
    plain_answers, members = plain.predict(rows, "fast"), plain._members
    assert members.distilled is not None
    changed = 0
    for i, row in enumerate(rows):
        for shift in (estimate.log_error[i], -estimate.log_error[i]):
            moved = dataclasses.replace(members.distilled, mean=members.distilled.mean + shift)
            plain._members = dataclasses.replace(members, distilled=moved)
            (answer,) = plain.predict([row], "fast")
            same = (answer.decision, answer.label_index) == (plain_answers[i].decision, plain_answers[i].label_index)
            assert same or i not in kept
            changed += not same
    assert changed


def test_unfamiliar_rows_are_answered_exactly_whatever_they_say(sentiment_predictor: Predictor) -> None:
    """Those of familiar words are not, where no error could decide."""
    sure = sure_of(sentiment_predictor, all_familiar=False)
    unfamiliar = [{"text": text} for text in ("7 3 9 9 2 " * 8, "qx zv kw jj vq " * 8, "a = f(b) ; " * 12)]
    rows = [*rows_of(sure), *(sure.encode(text, truncate=True) for text in unfamiliar)]
    answers, deferral = sure.predict_each(rows)
    assert deferral is not None
    assert deferral.rows == deferral.unfamiliar
    assert set(deferral.rows) >= {len(TEXTS), len(TEXTS) + 1, len(TEXTS) + 2}
    assert len(deferral.rows) < 3 + len(TEXTS) / 2
    served = sure.predict(rows, "fast")
    assert deferred_by(served) == deferral.rows
    assert answers["fast"][-1].probs != answers["laplace"][-1].probs
    assert served[-1].probs == pytest.approx(answers["laplace"][-1].probs, abs=1e-5)


def test_the_stated_risk_moves_where_fast_is_not_trusted(sentiment_predictor: Predictor) -> None:
    rows = rows_of(sentiment_predictor)
    deferred = {}
    for risk in (0.001, 0.2, 0.3, 0.4, 0.999):
        answers = sentiment_predictor.predict(rows, "fast", target_risk=risk)
        deferred[risk] = deferred_by(answers)
        decided, _ = sentiment_predictor.decided(answers, risk)
        exact, _ = sentiment_predictor.decided(sentiment_predictor.predict(rows, "laplace"), risk)
        for i in deferred[risk]:
            assert decided[i].decision == exact[i].decision
    assert len(set(map(tuple, deferred.values()))) > 1


def test_rows_of_different_risks_are_deferred_in_one_batch_as_among_rows_of_their_own_risk(
    sentiment_predictor: Predictor,
) -> None:
    rows, risks = rows_of(sentiment_predictor), (0.001, 0.3, None, 0.4, 0.999)
    wanted = [risks[i % len(risks)] for i in range(len(rows))]
    alone = {risk: sentiment_predictor.predict_deferring(rows, target_risks=[risk] * len(rows))[1] for risk in risks}
    assert len(set(map(tuple, alone.values()))) > 1
    assert alone[None] == sentiment_predictor.predict_deferring(rows)[1]
    _, deferred = sentiment_predictor.predict_deferring(rows, target_risks=wanted)
    assert deferred == [i for i, risk in enumerate(wanted) if i in alone[risk]]


def test_one_forward_pass_unless_rows_are_deferred(
    sentiment_predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = passes_seen(monkeypatch)
    sure = sure_of(sentiment_predictor, all_familiar=True)
    sure.predict(rows_of(sure), "fast")
    assert seen == ["scores"]
    sentiment_predictor.predict(rows_of(sentiment_predictor), "fast")
    assert seen == ["scores", "scores", "jacobians"]


def test_it_is_no_default(choices_predictor: Predictor) -> None:
    assert choices_predictor.recommended != "fast"
    assert "fast" not in choices_predictor.artifact.manifest.recommended.table
    inputs = {"question": "Is a dull plot good?", "choices": ["good", "bad", "neither of them"]}
    (answer,) = choices_predictor.predict([choices_predictor.encode(inputs, truncate=True)], "fast")
    assert len(answer.logit_covariance or []) == 3
