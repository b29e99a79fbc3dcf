"""A real model behind the seam: what travels is enough, and the numbers are those of a plain server."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from scorer_cluster import Cluster, serving
from serving import changed, settings, started
from test_entry import rows_of
from tiny_runs import FinishedRun, sentiment_rows

from service.app import create_app
from service.artifacts.predictors import default_library

pytestmark = pytest.mark.anyio

NAME = "tiny-sentiment"
INPUTS = [{"text": row["text"]} for row in sentiment_rows()[:6]]


@asynccontextmanager
async def plain(root: Path, run: FinishedRun) -> AsyncIterator[httpx.AsyncClient]:
    root.mkdir()
    shutil.copytree(run.artifact, root / NAME)
    own = settings(artifact=NAME, artifacts_root=root, device="cpu", conditioning=True)
    async with started(create_app(own)) as client:
        yield client


async def everything(client: httpx.AsyncClient, run: FinishedRun) -> list[Any]:
    """Return what a server answers: predictions, suggestions, and what labels change and an undo takes back."""

    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answered = changed(client, path, json=body) if path.startswith(NAME) else client.post(path, json=body)
        response = await answered
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def probs(answer: dict[str, Any]) -> list[float]:
        return [p["probs"]["positive"] for p in answer["predictions"]]

    options = {"options": {"predictive": "conditioned"}}
    found: list[Any] = []
    for one in INPUTS:
        for name in ("map", "laplace"):
            found.append(probs(await post("/predict", {"inputs": [one], "options": {"predictive": name}})))
    suggested = await post("/suggest", {"inputs": INPUTS, "options": {"count": 3}})
    found.append([one["row"] for one in suggested["suggested"]])
    found.append(probs(await post("/predict", {"inputs": INPUTS, **options})))
    learned = await post(f"{NAME}/condition", {"rows": rows_of(run)["test"], "force": True})
    found.append(learned["difference"])
    found.append(probs(await post("/predict", {"inputs": INPUTS, **options})))
    assert found[-1] != found[-3]
    undone = await post(f"{NAME}/condition/undo", {})
    assert undone["previous"] == learned["artifact"]["digest"]
    found.append(probs(await post("/predict", {"inputs": INPUTS, **options})))
    listed = (await client.get("/artifacts")).json()["artifacts"][0]
    found.append((listed["weights"], listed["reverse_pass"], listed["memory_bytes"]))
    return found


async def test_the_numbers_are_those_of_a_plain_server(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    async with plain(tmp_path / "plain", sentiment_run) as client:
        expected = await everything(client, sentiment_run)
    cluster = Cluster(tmp_path)
    shutil.copytree(sentiment_run.artifact, tmp_path / NAME)
    # One: what quiets transformers' warnings is not made for two loads of one process.
    cluster.add_real("a", default_library(), artifact=NAME, conditioning=True)
    values: dict[str, Any] = {"artifact": NAME, "artifacts_root": tmp_path, "conditioning": True}
    async with serving(cluster, default_library(), **values) as (client, _):
        found = await everything(client, sentiment_run)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4) if isinstance(other, (float, list)) else one == other
    assert set(cluster.answered_by()) == {"a"}
