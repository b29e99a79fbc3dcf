"""vLLM's classification API: its fields, laplora's beside them, and its refusals."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, serve

from laplora.prompts.templates import TEMPLATES

pytestmark = pytest.mark.anyio


async def classify(served: Served, **body: Any) -> httpx.Response:
    return await served.client.post("/classify", json=body)


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
async def test_the_answer_is_vllms_with_what_predict_says(path: str, served: Served) -> None:
    texts = ["fine 7", "fine 90000"]
    native = (await served.predict(*texts, options={"detail": "full"})).json()["predictions"]
    sent = {"model": "fake", "input": texts, "user": "u"}
    body = (await served.client.post(path, json=sent, headers={"x-request-id": "my-own"})).json()
    assert isinstance(body.pop("created"), int)
    tokens = sum(p["tokens"] for p in native)
    counts = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    data = body.pop("data")
    assert body == {"id": "classify-my-own", "object": "list", "model": "fake", "usage": counts}
    for i, (item, expected) in enumerate(zip(data, native, strict=True)):
        assert (item["index"], item["label"], item["num_classes"]) == (i, expected["label"], 2)
        assert item["probs"] == list(expected["probs"].values())
        own = item["laplora"]
        assert own["probs_std"] == list(expected["probs_std"].values())
        assert (own["epistemic"], own["aleatoric"]) == (0.1, 0.4)
        for field in ("answered_by", "familiarity", "score", "prediction_set", "flags", "decision", "decision_reason"):
            assert own[field] == expected[field]
        label = {"prediction_id": own["prediction_id"], "label": "positive"}
        told = await served.client.post("/feedback", json={"items": [label]})
        assert told.json()["results"][0]["status"] == "recorded"


async def test_one_text_is_one_answer_and_ids_and_truncation_can_be_given(served: Served) -> None:
    body = (await classify(served, input="fine", request_id="abc")).json()
    assert (len(body["data"]), body["id"]) == (1, "classify-abc")
    long = "w " * 100
    assert (await classify(served, input=long)).status_code == 422
    cut = await classify(served, input=long, truncate_prompt_tokens=-1)
    assert cut.json()["data"][0]["laplora"]["truncated"] is True


@pytest.mark.parametrize("name", ["use_activation", "activation", "softmax"])
async def test_without_activation_probs_are_logits(name: str, served: Served) -> None:
    asked = await served.predict("fine 7", options={"fields": ["logit_mean"]})
    logits = asked.json()["predictions"][0]["logit_mean"]
    assert (await classify(served, input="fine 7", **{name: False})).json()["data"][0]["probs"] == logits
    assert (await classify(served, input="fine 7", **{name: True})).json()["data"][0]["probs"] != logits


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": [1, 2, 3]}, "input", "Token ids are not taken"),
        ({"input": []}, "input", "one text or more"),
        ({"input": ["a", 1]}, "input", "one text or more"),
        ({"input": " "}, "input.0.text", "text"),
        ({"messages": [{"role": "user", "content": "SECRET"}]}, "body", "messages is not supported"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "less than or equal to -1"),
        ({"input": "a", "priority": 1}, "priority", "less than or equal to 0"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens", "True"),
        ({"input": "a", "truncation_side": "left"}, "body", "truncation_side is not supported"),
        ({}, "input", "required"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_vllms_shape(
    body: dict[str, Any], param: str, said: str, served: Served
) -> None:
    response = await classify(served, **body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, 422)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in ("invalid_request", "invalid_input")
    assert said in error["message"]
    assert "SECRET" not in response.text
    assert error["param"] == param


async def test_a_million_inputs_are_refused_before_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.calls.Input", None)  # making one would fail
    async with serve(max_inputs=4) as served:
        for texts in (["a"] * 5, ["a"] * 1_000_000, [[[["a"]]]]):
            response = await classify(served, input=texts)
            refused = (413, "batch_too_large") if len(texts) > 4 else (422, "invalid_request")
            assert (response.status_code, response.json()["error"]["type"]) == refused
        assert served.predictor.batches == []


async def test_an_artifact_of_several_fields_is_refused_by_name() -> None:
    for template, fields in (("boolq", "'question', 'passage'"), ("multiple_choice", "'question', 'choices'")):
        async with serve(FakePredictor(template=TEMPLATES[template], labels="AB")) as served:
            error = (await classify(served, input="a")).json()["error"]
            assert (error["type"], error["param"]) == ("invalid_input", "input")
            assert fields in error["message"]


async def test_unknown_models_and_paths_and_media_types_are_refused_in_vllms_shape(served: Served) -> None:
    post = served.client.post
    broken = await post("/classify", content=b"{", headers={"content-type": "application/json"})
    for answer, status, code in (
        (await classify(served, model="nobody", input="a"), 404, "artifact_not_found"),
        (await post("/v1/embeddings", json={}), 404, "route_not_found"),
        (await served.client.get("/classify"), 405, "method_not_allowed"),
        (await post("/classify", content=b"input=a"), 415, "unsupported_media_type"),
        (broken, 422, "invalid_json"),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (status, status, code)
