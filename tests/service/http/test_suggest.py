"""POST /suggest over a real artifact: the library's choice, in a request's bounds."""

from __future__ import annotations

from typing import Any

import pytest
from serving import settings, started
from tiny_runs import FinishedRun, sentiment_rows

from laplora.predictor import Predictor
from laplora.selection.suggest import suggest
from service.app import create_app

pytestmark = pytest.mark.anyio

TEXTS = [{"id": f"t{i}", "text": row["text"]} for i, row in enumerate(sentiment_rows()[:12])]
INPUTS = [*TEXTS, {"text": TEXTS[4]["text"]}]


async def test_the_choice_is_the_librarys_and_unfamiliar_inputs_are_left_out(
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
        assert list(sent["probs"].values()) == pytest.approx(one.prediction.probs, abs=1e-5)
    assert some["suggested"]
    assert all(one["familiarity"] >= middle for one in some["suggested"])
    assert some["unfamiliar"] == 12 - len(some["suggested"]) > 0
