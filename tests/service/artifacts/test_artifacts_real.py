"""Two real artifacts on one base model behind HTTP: each answer is that of the artifact loaded alone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import cache, settings, started
from tiny_runs import FinishedRun

from laplora.predictor import Predictor
from service.app import create_app

pytestmark = pytest.mark.anyio

TEXTS = [f"The {noun} was {word}." for noun in ("film", "plot", "cast") for word in ("superb", "dull", "moving")]
#: Float32: sums in another order, as padding and the size of a batch change them.
TOLERANCE = 2e-4


@pytest.fixture
def root(sentiment_run: FinishedRun, mixture_run: FinishedRun, tmp_path: Path) -> Path:
    for run in (sentiment_run, mixture_run):
        shutil.copytree(run.artifact, tmp_path / run.artifact.name)
    return tmp_path


@asynccontextmanager
async def served(root: Path, artifact: str, **values: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    app = create_app(settings(artifact=artifact, artifacts_root=root, device="cpu", cache=cache(), **values))
    async with started(app) as client:
        yield client, app.state.artifacts


def alone(predictor: Predictor) -> list[list[float]]:
    rows = [predictor.encode({"text": text}, truncate=True) for text in TEXTS]
    return [p.probs for p in predictor.predict(rows, "laplace")]


async def test_each_answers_as_alone_whatever_runs_beside_it(
    root: Path, sentiment_predictor: Predictor, mixture_predictor: Predictor
) -> None:
    expected = {"tiny-sentiment": alone(sentiment_predictor), "tiny-mixture": alone(mixture_predictor)}
    digests = {p.artifact.name: p.artifact.digest for p in (sentiment_predictor, mixture_predictor)}
    # They are two: on one base, with other adapters, they answer differently.
    apart = [abs(a[0] - b[0]) for a, b in zip(*expected.values(), strict=True)]
    assert max(apart) > 10 * TOLERANCE
    async with served(root, "tiny-sentiment", also_load="tiny-mixture") as (client, host):

        async def check(name: str, i: int) -> None:
            options = {"predictive": "laplace", "covariance": True}
            body = {"inputs": [{"text": TEXTS[i]}], "artifact": name, "options": options}
            answer = (await client.post("/predict", json=body)).json()
            assert answer["artifact"]["digest"] == digests[name]
            probs = list(answer["predictions"][0]["probs"].values())
            assert probs == pytest.approx(expected[name][i], abs=TOLERANCE)

        one, other = (host.shelf.find(name) for name in expected)
        assert one.base is other.base
        await asyncio.gather(*(check(name, i) for _ in range(2) for i in range(len(TEXTS)) for name in expected))
        listing = (await client.get("/artifacts")).json()["artifacts"]
        assert [a["memory_bytes"] for a in listing] == [one.own_bytes, other.own_bytes]
        del one, other
        for i, changes in enumerate((("mixture/unload", "mixture/load"), ("mixture/activate", "sentiment/unload"))):
            for change in changes:
                assert (await client.post(f"/artifacts/tiny-{change}")).status_code == 200
            await check("tiny-mixture", i)


async def test_rows_that_run_alone_are_the_same_to_the_last_bit(root: Path) -> None:
    """With ``batch_tokens=1`` no two rows share a batch: traffic cannot change a digit of an answer."""
    async with served(root, "tiny-mixture", batch_tokens=1) as (client, _):

        async def ask(*texts: str) -> list[dict[str, float]]:
            response = await client.post("/predict", json={"inputs": [{"text": text} for text in texts]})
            return [{**p["probs"], **p["map_probs"]} for p in response.json()["predictions"]]

        quiet = [await ask(text) for text in TEXTS]
        busy = await asyncio.gather(*(ask(text) for text in TEXTS), *(ask(*TEXTS) for _ in range(3)))
    assert busy[: len(TEXTS)] == quiet
    for together in busy[len(TEXTS) :]:
        assert together == [answers[0] for answers in quiet]
