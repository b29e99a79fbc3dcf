"""POST /predict, and POST /suggest over a real artifact: what a well-meaning client gets."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from serving import FakePredictor, Served, serve, settings, started
from tiny_runs import FinishedRun, sentiment_rows

from laplora.predictor import Predictor
from laplora.selection.suggest import suggest
from service.app import create_app
from service.http.routes import planning
from service.http.schemas.predict import PredictionOut, PredictResponse

pytestmark = pytest.mark.anyio


async def test_an_answer_is_short_unless_more_is_asked_for(served: Served) -> None:
    short = (await served.predict("fine 7")).json()
    body = (await served.predict("fine 7", options={"detail": "full"})).json()
    PredictResponse.model_validate(body)
    artifact = {"name": "fake", "digest": "sha256:fake", "base_model": "tiny", "quantization": "none"}
    assert short == {"artifact": artifact, "predictions": short["predictions"]}
    assert body["predictive"] == {"name": "laplace", "recommended": "laplace", "reason": "it was better"}
    (few,), (prediction,) = short["predictions"], body["predictions"]
    names = ("probs", "map_probs", "decision", "decision_reason", "prediction_set", "flags", "uncertainty", "probs_std")
    assert [*few] == ["label", *names, "prediction_id"]
    assert {**few, "prediction_id": ""} == {name: prediction[name] for name in few} | {"prediction_id": ""}
    left_out = {
        "id",
        "expected_cost",
        "logit_covariance",
        "labels",
        "spread_of",
        "expected_label",
        "expected_label_std",
    }
    assert set(PredictionOut.model_fields) - set(prediction) == left_out
    assert prediction["decision_reason"] == "0.93 is at least 0.91, the threshold for a 5 % error rate"
    assert prediction["uncertainty"] == {"total": 0.5, "aleatoric": 0.4, "epistemic": 0.1}
    timing = body["timing_ms"]
    assert all(value >= 0 for value in timing.values())
    assert timing["queue"] + timing["tokenize"] + timing["compute"] <= timing["total"]


#: Options, the predictive that answers, what is computed beside it, and what an answer has beside a short one's.
ASKED: list[tuple[dict[str, Any], str, tuple[str, ...], set[str]]] = [
    ({}, "laplace", (), set()),
    ({"predictive": "map"}, "map", (), {"-uncertainty", "-probs_std"}),
    ({"predictive": "temperature"}, "temperature", (), {"-uncertainty", "-probs_std"}),
    ({"predictive": "temperature", "variance": True}, "temperature", ("laplace",), {"logit_variance"}),
    ({"predictive": "map", "variance": True}, "map", ("laplace",), {"spread_of", "logit_variance"}),
    ({"predictive": "map", "fields": ["logit_variance"]}, "map", ("laplace",),
     {"spread_of", "logit_variance", "-probs", "-map_probs", "-probs_std"}),
    ({"predictive": "map", "covariance": True}, "map", ("laplace",),
     {"logit_covariance", "-uncertainty", "-probs_std"}),
    ({"predictive": "map", "fields": ["probs_std"]}, "map", (), {"-uncertainty", "-probs", "-map_probs"}),
    ({"predictive": "laplace", "variance": True}, "laplace", (), {"logit_variance"}),
    ({"fields": []}, "laplace", (), {"-probs", "-map_probs", "-probs_std"}),
    ({"fields": ["logit_covariance", "logit_mean"]}, "laplace", (),
     {"logit_covariance", "logit_mean", "-probs", "-map_probs", "-probs_std"}),
]  # fmt: skip


async def test_which_predictive_answers_and_what_is_asked_for_comes(served: Served) -> None:
    usual = set((await served.predict("fine 7")).json()["predictions"][0])
    for options, predictive, also, more in ASKED:
        (answer,) = (await served.predict("fine 7", options=options)).json()["predictions"]
        assert (served.predictor.batches[-1][0], served.predictor.also[-1]) == (predictive, also), options
        less = {name[1:] for name in more if name.startswith("-")}
        assert set(answer) == usual - less | {name for name in more if not name.startswith("-")}, options
        if "spread_of" in answer:
            parts = {"total": 0.45, "aleatoric": 0.3, "epistemic": 0.15}
            assert (answer["spread_of"], answer["uncertainty"]) == ("laplace", pytest.approx(parts))
        assert predictive != "map" or answer.get("probs") == answer.get("map_probs")
    full = (await served.predict("fine 7", options={"predictive": "map", "detail": "full"})).json()
    assert full["predictive"]["reason"] == "map was asked for"
    assert (full["predictions"][0]["answered_by"], full["predictions"][0]["probs_std"]) == ("map", None)


async def test_decisions_are_for_the_stated_risk_and_say_so() -> None:
    predictor = FakePredictor()
    predictor.recommended = predictor.artifact.manifest.recommended.predictive = "temperature"
    async with serve(predictor) as served:
        risks: tuple[dict[str, float], ...] = ({}, {"target_risk": 0.1}, {"target_risk": 0.2})
        plain, strict, lenient = [
            (await served.predict("fine 7", options={"detail": "full", **risk})).json() for risk in risks
        ]
    assert plain["predictive"] == {"name": "temperature", "recommended": "temperature", "reason": "it was better"}
    assert predictor.also == [()] * 3
    assert [b["target_risk"] for b in (plain, strict, lenient)] == [0.05, 0.1, 0.2]
    decided = [(b["predictions"][0]["decision"], b["predictions"][0]["decision_reason"]) for b in (strict, lenient)]
    assert decided == [
        ("review", "0.93 is below 0.95, the threshold for a 10 % error rate"),
        ("accept", "0.93 is at least 0.86, the threshold for a 20 % error rate"),
    ]
    said = {"message": "temperature accepts nothing", "accepts_from": 0.125}
    assert [b.get("nothing_accepted") for b in (plain, strict, lenient)] == [None, said, None]


async def test_a_large_answer_is_the_small_ones_written_in_pieces_and_has_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of it is left out or doubled, its covariances above all, whoever asks: also of few labels."""
    monkeypatch.setattr(planning, "MOST_NUMBERS", 40 * 150 * 158)
    async with serve(FakePredictor(labels=[f"label {i}" for i in range(150)])) as served:
        options, texts = {"covariance": True}, [f"fine {i}" for i in range(2, 42)]
        answer = await served.predict(*texts, options=options)
        each = [
            (await served.predict(text, options=options)).json()["predictions"][0] for text in (texts[0], texts[-1])
        ]
        refused = await served.predict(*texts, "fine 43", options=options)
    assert "content-length" not in answer.headers
    body = PredictResponse.model_validate_json(answer.content)
    assert len(body.predictions) == 40
    for one, alone in zip((body.predictions[0], body.predictions[-1]), each, strict=True):
        assert {**one.model_dump(exclude_unset=True), "prediction_id": ""} == {**alone, "prediction_id": ""}
    assert body.predictions[0].logit_covariance == [[0.1] * 150] * 150
    assert refused.status_code == 413
    error = refused.json()["error"]
    assert (error["field"], error["limit"], error["got"]) == ("inputs", 40 * 150 * 158, 41 * 150 * 158)
    assert "covariance" in error["message"]


async def test_answers_that_nobody_takes_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_NUMBERS", 10 * 2 * 10)
    async with serve() as served:
        ask = partial(served.predict, *[f"fine {i}" for i in range(10)], options={"covariance": True})
        served.predictor.hold()
        first = [asyncio.create_task(ask()) for _ in range(2)]
        await served.until(lambda: served.queued_plans == 2)
        refused = (await ask()).json()["error"]
        assert (refused["code"], refused["limit"], refused["got"]) == ("client_too_many_requests", 400, 600)
        served.predictor.released.set()
        assert [answer.status_code for answer in [*await asyncio.gather(*first), await ask()]] == [200] * 3


async def test_a_request_may_ask_for_less_time_than_the_server_gives() -> None:
    async with serve(request_timeout_s=3600) as served:
        async with served.occupied():
            refused = await served.predict("b 77777", options={"timeout_s": 0.05})
            rows = {"inputs": [{"text": "b 77777", "label": "positive"}], "options": {"timeout_s": 0.05}}
            evaluated = await served.client.post("/evaluate", json=rows)
            assert (served.state.backend.queue.rows, served.state.backend.queue.held.rows) == (0, 0)
        assert (await served.predict("a", options={"timeout_s": 60})).status_code == 200
        assert all(77777 not in row.token_ids for _, rows in served.predictor.batches for row in rows)
    # Nobody gets more time than the server gives.
    async with serve(request_timeout_s=0.05) as served:
        served.predictor.hold()
        longer = await served.predict("a", options={"timeout_s": 3600.5})
        served.predictor.released.set()
    for response in (refused, evaluated, longer):
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


TEXTS = [{"id": f"t{i}", "text": row["text"]} for i, row in enumerate(sentiment_rows()[:12])]
INPUTS = [*TEXTS, {"text": TEXTS[4]["text"]}]


async def test_what_is_suggested_is_the_librarys_choice_and_unfamiliar_inputs_are_left_out(
    sentiment_run: FinishedRun, sentiment_predictor: Predictor
) -> None:
    app = create_app(settings(artifact=sentiment_run.artifact.name, artifacts_root=sentiment_run.artifact.parent))
    async with started(app) as client:

        async def suggested(**options: Any) -> dict[str, Any]:
            answer = await client.post("/suggest", json={"inputs": INPUTS, "options": options})
            assert answer.status_code == 200, answer.text
            body: dict[str, Any] = answer.json()
            assert (body["rows"], body["repeated"]) == (13, 1)
            return body

        options = {"predictive": "conditioned", "target_risk": 1e-4}
        strict = (await client.post("/predict", json={"inputs": INPUTS, "options": options})).json()
        assert strict["nothing_accepted"]["message"].startswith(
            "conditioned accepts nothing at an error rate of 0.01 %"
        )
        body, every = await suggested(count=5), await suggested(least_familiarity=0.0)
        middle = sorted(one["familiarity"] for one in every["suggested"])[6]
        some = await suggested(least_familiarity=middle)
    rows = [sentiment_predictor.encode({"text": one["text"]}, truncate=False) for one in INPUTS]
    expected = suggest(sentiment_predictor, rows, 5).rows
    assert [one["row"] for one in body["suggested"]] == [one.row for one in expected]
    for sent, one in zip(body["suggested"], expected, strict=True):
        assert sent["id"] == INPUTS[one.row].get("id")
        assert sent["gain"] == pytest.approx(one.gain, rel=1e-4)
        assert sent["predicted"] == one.prediction.label
        # A rank among 32 calibration rows: in another batch a tie may fall to the other side.
        assert sent["familiarity"] == pytest.approx(one.prediction.familiarity, abs=2 / 32)
        assert sent["probs"] == pytest.approx(one.prediction.probs, abs=1e-5)
    assert some["suggested"]
    assert all(one["familiarity"] >= middle for one in some["suggested"])
    assert some["unfamiliar"] == 12 - len(some["suggested"]) > 0
