"""POST /suggest over a real artifact: the library's choice, in a request's bounds."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import httpx
import pytest
from serving import code, serve, settings, started
from tiny_runs import FinishedRun, sentiment_rows

from laplora.predictor import Predictor
from laplora.selection import pool
from laplora.selection.suggest import suggest
from service.app import create_app

pytestmark = pytest.mark.anyio

TEXTS = [{"id": f"t{i}", "text": row["text"]} for i, row in enumerate(sentiment_rows()[:12])]
INPUTS = [*TEXTS, {"text": TEXTS[4]["text"]}]


async def answers(run: FinishedRun, *bodies: dict[str, Any], **values: Any) -> list[httpx.Response]:
    app = create_app(settings(artifact=run.artifact.name, artifacts_root=run.artifact.parent, **values))
    async with started(app) as client:
        return [await client.post("/suggest", json=body) for body in bodies]


@pytest.mark.parametrize("method", ["information", "prediction", "entropy"])
async def test_the_choice_is_the_librarys(
    sentiment_run: FinishedRun, sentiment_predictor: Predictor, method: Any
) -> None:
    (answer,) = await answers(sentiment_run, {"inputs": INPUTS, "options": {"count": 5, "method": method}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["rows"], body["repeated"]) == (13, 1)
    rows = [sentiment_predictor.encode({"text": one["text"]}, truncate=False) for one in INPUTS]
    expected = suggest(sentiment_predictor, rows, 5, method).rows
    assert [one["row"] for one in body["suggested"]] == [one.row for one in expected]
    total = 0.0
    for sent, one in zip(body["suggested"], expected, strict=True):
        assert one.gain is not None
        total += one.gain
        assert sent["id"] == INPUTS[one.row].get("id")
        assert (sent["gain"], sent["cumulative_gain"]) == pytest.approx((one.gain, total), rel=1e-4)
        assert sent["predicted"] == one.prediction.label
        # A rank among 32 calibration rows: in another batch a tie may fall to the other side.
        assert sent["familiarity"] == pytest.approx(one.prediction.familiarity, abs=2 / 32)
        assert list(sent["probs"].values()) == pytest.approx(one.prediction.probs, abs=1e-5)


async def test_unfamiliar_inputs_are_left_out(sentiment_run: FinishedRun) -> None:
    def least(familiarity: float) -> dict[str, Any]:
        return {"inputs": INPUTS, "options": {"method": "entropy", "least_familiarity": familiarity}}

    (every,) = await answers(sentiment_run, least(0.0))
    middle = sorted(one["familiarity"] for one in every.json()["suggested"])[6]
    (answer,) = await answers(sentiment_run, least(middle))
    some = answer.json()
    assert some["suggested"]
    assert all(one["familiarity"] >= middle for one in some["suggested"])
    assert (some["unfamiliar"], some["repeated"]) == (12 - len(some["suggested"]), 1)
    assert some["unfamiliar"] > 0


async def test_the_inputs_of_one_suggestion_at_a_time_are_in_memory(
    sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue counts rows and tokens alone. Each caller is answered, whoever came before it."""
    alive: weakref.WeakSet[pool.FeaturePass] = weakref.WeakSet()
    most: list[int] = []
    begin, run = pool.FeaturePass.__init__, pool.FeaturePass.run

    def begun(self: pool.FeaturePass, *given: Any) -> None:
        alive.add(self)
        begin(self, *given)

    def ran(self: pool.FeaturePass, index: Any) -> None:
        most.append(len(alive))
        run(self, index)

    monkeypatch.setattr(pool.FeaturePass, "__init__", begun)
    monkeypatch.setattr(pool.FeaturePass, "run", ran)
    app = create_app(settings(artifact=sentiment_run.artifact.name, artifacts_root=sentiment_run.artifact.parent))
    async with started(app) as client:
        body = {"inputs": TEXTS, "options": {"count": 3}}
        answers = await asyncio.gather(*(client.post("/suggest", json=body) for _ in range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert max(most) == 1


async def test_a_posterior_that_no_information_follows_from_is_said() -> None:
    """The other methods answer, also for inputs that the fake takes for equal."""
    async with serve() as served:
        refused = await served.client.post("/suggest", json={"inputs": TEXTS})
        answer = await served.client.post("/suggest", json={"inputs": TEXTS, "options": {"method": "entropy"}})
    assert code(refused) == (422, "invalid_request")
    assert "structure 'none of a fake' does not have" in refused.json()["error"]["message"]
    entropies = [one["entropy"] for one in answer.json()["suggested"]]
    assert entropies == sorted(entropies, reverse=True)


async def test_what_is_refused(sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MEMORY_BYTES", 1000)
    memory, entropy, count, method, many = await answers(
        sentiment_run,
        {"inputs": INPUTS},
        {"inputs": INPUTS, "options": {"method": "entropy"}},
        {"inputs": INPUTS, "options": {"count": 0}},
        {"inputs": INPUTS, "options": {"method": "luck"}},
        {"inputs": [{"text": f"number {i}"} for i in range(21)]},
        max_inputs=20,
    )
    assert (memory.status_code, memory.json()["error"]["field"]) == (422, "options.method")
    assert "choose by entropy" in memory.json()["error"]["message"]
    assert entropy.status_code == 200
    assert (count.status_code, count.json()["error"]["field"]) == (422, "options.count")
    assert (method.status_code, method.json()["error"]["field"]) == (422, "options.method")
    assert (many.status_code, many.json()["error"]["code"]) == (413, "batch_too_large")
