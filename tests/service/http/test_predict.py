"""POST /predict: what a well-meaning client gets."""

from __future__ import annotations

from typing import Any

import pytest
from serving import FakePredictor, Served, serve

from service.http.schemas.predict import PredictionOut, PredictResponse

pytestmark = pytest.mark.anyio


async def test_answer_has_the_contracts_fields(served: Served) -> None:
    body = (await served.predict("fine 7")).json()
    PredictResponse.model_validate(body)
    assert body["predictive"] == {"name": "laplace", "recommended": "laplace", "reason": "it was better"}
    artifact = {"name": "fake", "digest": "sha256:fake", "base_model": "tiny", "quantization": "none"}
    assert body["artifact"] == artifact
    (prediction,) = body["predictions"]
    assert set(PredictionOut.model_fields) - set(prediction) == {"id", "logit_covariance", "orders", "labels"}
    assert set(prediction["probs"]) == {"negative", "positive"}
    assert prediction["uncertainty"] == {"total": 0.5, "aleatoric": 0.4, "epistemic": 0.1}
    timing = body["timing_ms"]
    assert all(value >= 0 for value in timing.values())
    assert timing["queue"] + timing["tokenize"] + timing["compute"] <= timing["total"]


#: Options, the predictive that answers, and what is computed beside it.
ASKED: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
    ({}, "laplace", ()),
    ({"predictive": "map"}, "map", ()),
    ({"predictive": "map", "covariance": True}, "map", ("laplace",)),
    ({"predictive": "temperature"}, "temperature", ()),
    ({"predictive": "temperature", "covariance": True}, "temperature", ("laplace",)),
    ({"predictive": "laplace", "covariance": True}, "laplace", ()),
]


async def test_which_predictive_answers(served: Served) -> None:
    for options, predictive, also in ASKED:
        body = (await served.predict("fine 7", options=options)).json()
        assert (served.predictor.batches[-1][0], served.predictor.also[-1]) == (predictive, also), options
        assert body["predictive"]["name"] == body["predictions"][0]["answered_by"] == predictive
        (answer,) = body["predictions"]
        assert (answer["logit_variance"] is not None) == ("laplace" in (predictive, *also))
        assert ("logit_covariance" in answer) == options.get("covariance", False)
        assert predictive != "map" or answer["probs"] == answer["map_probs"]
    assert len(served.predictor.batches) == len(ASKED)


async def test_the_posterior_comes_with_whatever_is_recommended_and_decisions_are_for_the_stated_risk() -> None:
    predictor = FakePredictor()
    predictor.recommended = predictor.artifact.manifest.recommended.predictive = "temperature"
    async with serve(predictor) as served:
        risks: tuple[dict[str, float], ...] = ({}, {"target_risk": 0.1}, {"target_risk": 0.2})
        plain, strict, lenient = [
            (await served.predict("fine 7", options={"covariance": True, **risk})).json() for risk in risks
        ]
    assert plain["predictive"] == {"name": "temperature", "recommended": "temperature", "reason": "it was better"}
    assert plain["predictions"][0]["logit_covariance"] == [[0.1, 0.1], [0.1, 0.1]]
    assert [b["target_risk"] for b in (plain, strict, lenient)] == [0.05, 0.1, 0.2]
    assert [b["predictions"][0]["decision"] for b in (strict, lenient)] == ["review", "accept"]


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
