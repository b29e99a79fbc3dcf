"""text-embeddings-inference's POST /predict, GET /info and GET /health under /tei."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, serve

from laplora.prompts.templates import TEMPLATES

pytestmark = pytest.mark.anyio


async def predict(served: Served, inputs: Any, **body: Any) -> httpx.Response:
    return await served.client.post("/tei/predict", json={"inputs": inputs, **body})


async def by_score(served: Served, text: str) -> list[dict[str, Any]]:
    probs = (await served.predict(text)).json()["predictions"][0]["probs"]
    return [{"score": score, "label": label} for label, score in sorted(probs.items(), key=lambda item: -item[1])]


async def test_a_text_is_answered_by_one_list_and_a_batch_by_one_each(served: Served) -> None:
    first, second = await by_score(served, "fine 7"), await by_score(served, "fine 90000")
    assert first[0]["label"] == "positive"
    assert second[0]["label"] == "negative"
    assert (await predict(served, "fine 7")).json() == first
    assert (await predict(served, ["fine 7"])).json() == first
    assert (await predict(served, [["fine 7"]])).json() == [first]
    assert (await predict(served, [["fine 7"], ["fine 90000"]], truncate=None)).json() == [first, second]
    # Of equal scores the last label is first.
    even = [{"score": 0.5, "label": "positive"}, {"score": 0.5, "label": "negative"}]
    assert (await predict(served, "50000")).json() == even
    logits = (await predict(served, "fine 7", raw_scores=True)).json()
    assert {one["score"] for one in logits} == {0.0}
    assert (await predict(served, "w " * 100)).json()["error_type"] == "Validation"
    assert (await predict(served, "w " * 100, truncate=True)).status_code == 200


async def test_a_pair_fills_two_fields() -> None:
    async with serve(FakePredictor(template=TEMPLATES["boolq"])) as served:
        pair = (await predict(served, ["Is it 7?", "It is."])).json()
        batch = (await predict(served, [["Is it 7?", "It is."]])).json()
        assert batch == [pair]
        assert (await predict(served, "Is it 7?")).status_code == 422


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": ["a", "b"]}, "has 2 texts"),
        ({"inputs": []}, "a pair of texts"),
        ({"inputs": [["a", "b", "c"]]}, "a pair of texts"),
        ({"inputs": [["a"], [["b"]]]}, "a pair of texts"),
        ({"inputs": "a", "raw_scores": 1}, "raw_scores"),
        ({"inputs": "a", "truncation_direction": "Left"}, "truncation_direction is not supported"),
        ({"inputs": " "}, "text"),
        ({}, "required"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_teis_shape(body: dict[str, Any], said: str, served: Served) -> None:
    response = await served.client.post("/tei/predict", json=body)
    assert response.status_code == 422
    assert set(response.json()) == {"error", "error_type"}
    assert said in response.json()["error"]
    assert response.json()["error_type"] == "Validation"


async def test_limits_and_overload_hold_and_answers_count_as_recent_ones() -> None:
    async with serve(max_inputs=2, max_queue_rows=2, client_share=1) as served:
        for inputs in ([["a"]] * 3, [["a"]] * 300_000):
            assert (await predict(served, inputs)).status_code == 413
        async with served.occupied():
            waiting = asyncio.create_task(predict(served, "a"))
            await served.until(lambda: served.state.backend.queue.rows == 1)
            full = await predict(served, [["a"]] * 2)
            assert (full.status_code, full.json()["error_type"]) == (429, "Overloaded")
            assert "retry-after" in full.headers
        assert (await waiting).status_code == 200
        (report,) = (await served.client.get("/feedback")).json()["series"]
    assert report["recent"] == 2
    assert len(served.state.feedback) == 1, "TEI's answers have no ids, the other has one"


async def test_info_describes_the_active_artifact_and_readiness_has_no_body(served: Served) -> None:
    info = (await served.client.get("/tei/info")).json()
    assert info["model_id"] == "fake"
    assert info["model_type"] == {
        "classifier": {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}}
    }
    assert (info["max_input_length"], info["max_client_batch_size"]) == (64, 256)
    assert {"model_sha", "model_dtype", "max_concurrent_requests", "max_batch_tokens", "version"} <= set(info)
    ready = await served.client.get("/tei/health")
    assert (ready.status_code, ready.content) == (200, b"")
    served.state.lifecycle.drain()
    leaving = await served.client.get("/tei/health")
    assert (leaving.status_code, leaving.json()["error_type"]) == (503, "Unhealthy")
