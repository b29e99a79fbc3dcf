"""Two real artifacts on one base model behind HTTP: each answer is that of the artifact loaded alone."""

from __future__ import annotations

import asyncio
import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
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


def alone(predictor: Predictor) -> list[list[float]]:
    rows = [predictor.encode({"text": text}, truncate=True) for text in TEXTS]
    return [p.probs for p in predictor.predict(rows, "laplace")]


async def test_each_answers_as_alone_whatever_runs_beside_it(
    root: Path, sentiment_predictor: Predictor, mixture_predictor: Predictor
) -> None:
    expected = {"tiny-sentiment": alone(sentiment_predictor), "tiny-mixture": alone(mixture_predictor)}
    digests = {p.artifact.name: p.artifact.digest for p in (sentiment_predictor, mixture_predictor)}
    chosen = settings(
        artifact="tiny-sentiment", also_load="tiny-mixture", artifacts_root=root, device="cpu", cache=cache()
    )
    app = create_app(chosen)
    async with started(app) as client:
        host = app.state.artifacts

        async def ask(name: str, i: int) -> tuple[str, int, dict[str, Any]]:
            body = {
                "inputs": [{"text": TEXTS[i]}],
                "artifact": name,
                "options": {"predictive": "laplace", "covariance": True},
            }
            response = await client.post("/predict", json=body)
            assert response.status_code == 200, response.text
            return name, i, response.json()

        one, other = host.shelf.find("tiny-sentiment"), host.shelf.find("tiny-mixture")
        assert one.base is other.base
        asked = [ask(name, i) for _ in range(2) for i in range(len(TEXTS)) for name in expected]
        answers = await asyncio.gather(*asked)
        listing = (await client.get("/artifacts")).json()["artifacts"]
        assert [a["memory_bytes"] for a in listing] == [one.own_bytes, other.own_bytes]
        del one, other
        assert (await client.post("/artifacts/tiny-mixture/unload")).status_code == 200
        assert (await client.post("/artifacts/tiny-mixture/load")).status_code == 200
        answers.append(await ask("tiny-mixture", 0))
        assert (await client.post("/artifacts/tiny-mixture/activate")).status_code == 200
        assert (await client.post("/artifacts/tiny-sentiment/unload")).status_code == 200
        answers.append(await ask("tiny-mixture", 1))
        gc.collect()
    for name, i, answer in answers:
        assert answer["artifact"]["digest"] == digests[name]
        got = list(answer["predictions"][0]["probs"].values())
        torch.testing.assert_close(torch.tensor(got), torch.tensor(expected[name][i]), atol=TOLERANCE, rtol=0)
    # They are two: on one base, with other adapters, they answer differently.
    apart = torch.tensor(expected["tiny-sentiment"]) - torch.tensor(expected["tiny-mixture"])
    assert apart.abs().max() > 10 * TOLERANCE


async def test_rows_that_run_alone_are_the_same_to_the_last_bit(root: Path) -> None:
    """With ``batch_tokens=1`` no two rows share a batch: traffic cannot change a digit of an answer."""
    chosen = settings(artifact="tiny-mixture", artifacts_root=root, device="cpu", cache=cache(), batch_tokens=1)
    async with started(create_app(chosen)) as client:

        async def ask(*texts: str) -> list[dict[str, float]]:
            response = await client.post("/predict", json={"inputs": [{"text": text} for text in texts]})
            return [{**p["probs"], **p["map_probs"]} for p in response.json()["predictions"]]

        quiet = [await ask(text) for text in TEXTS]
        busy = await asyncio.gather(*(ask(text) for text in TEXTS), *(ask(*TEXTS) for _ in range(3)))
    assert busy[: len(TEXTS)] == quiet
    for together in busy[len(TEXTS) :]:
        assert together == [answers[0] for answers in quiet]
