"""Labels sent to a running server: answers change and change back, and what is refused changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, changed, code, settings, started
from test_entry import rows_of
from tiny_runs import FinishedRun, reseal

import laplora
from laplora.answers import comparison
from laplora.artifact.folder import read_artifact
from laplora.fitting import loaded as versions
from laplora.predictor import Predictor
from service.app import create_app

pytestmark = pytest.mark.anyio

NAME = "tiny-sentiment"
CONDITION = f"{NAME}/condition"


@dataclass
class Server:
    """A server that learns, its artifact's folder, and rows with labels."""

    client: httpx.AsyncClient
    state: Any
    folder: Path
    rows: list[dict[str, Any]]

    async def probs(self, predictive: str | None = None) -> list[float]:
        options = {} if predictive is None else {"options": {"predictive": predictive}}
        inputs = [{"text": "The film was superb."}, {"text": "The plot was dull."}]
        answer = (await self.client.post("/predict", json={"inputs": inputs, **options})).json()
        return [p["probs"]["positive"] for p in answer["predictions"]]

    async def digest(self) -> str:
        digest: str = (await self.client.get("/artifacts")).json()["artifacts"][0]["digest"]
        assert digest == read_artifact(self.folder).digest
        return digest

    async def send(self, **fields: Any) -> httpx.Response:
        return await changed(self.client, CONDITION, json={"rows": self.rows, "force": True} | fields)


@pytest.fixture
async def server(sentiment_run: FinishedRun, tmp_path: Path) -> AsyncIterator[Server]:
    folder = Path(shutil.copytree(sentiment_run.artifact, tmp_path / NAME))
    app = create_app(settings(artifact=NAME, artifacts_root=tmp_path, device="cpu", conditioning=True))
    async with started(app) as client:
        yield Server(client, app.state, folder, rows_of(sentiment_run)["test"])


async def test_answers_change_and_change_back(server: Server) -> None:
    """And neither requests under way nor the digest are lost: every answer is of one version or the other."""
    before, digest, seen = await server.probs("conditioned"), await server.digest(), set()
    done = asyncio.Event()

    async def ask() -> None:
        while not done.is_set():
            body = {"inputs": [{"text": "The film was superb."}], "options": {"predictive": "conditioned"}}
            answer = await server.client.post("/predict", json=body)
            assert answer.status_code == 200, answer.text
            seen.add(
                (answer.json()["artifact"]["digest"], round(answer.json()["predictions"][0]["probs"]["positive"], 3))
            )

    asking = asyncio.gather(*(ask() for _ in range(3)))
    response = await server.send(digest=digest)
    assert response.status_code == 200, response.text
    after = await server.probs("conditioned")
    answer = response.json()
    assert answer["artifact"]["digest"] == await server.digest() != digest
    assert answer["previous"] == digest
    assert answer["rows"] == len(server.rows)
    assert answer["difference"] == pytest.approx(answer["after"]["nll"] - answer["before"]["nll"])
    assert after != pytest.approx(before, abs=1e-5)
    undone = await changed(server.client, f"{CONDITION}/undo", json={"digest": answer["artifact"]["digest"]})
    assert undone.status_code == 200, undone.text
    assert undone.json()["artifact"]["digest"] == await server.digest() == digest
    assert await server.probs("conditioned") == pytest.approx(before, abs=1e-6)
    done.set()
    await asking
    assert {one for one, _ in seen} <= {digest, answer["artifact"]["digest"]}
    assert len(seen) == len({one for one, _ in seen})  # one number of each version
    again = await server.client.post(f"/artifacts/{CONDITION}/undo", json={})
    assert code(again) == (422, "conditioning_impossible")


async def test_one_change_at_a_time_and_sent_twice_it_is_as_sent_once(server: Server) -> None:
    """A retry after a lost answer teaches nothing twice; with the digest before it is told so."""
    digest = await server.digest()
    first = asyncio.create_task(server.send())
    while not server.state.artifacts._changing.locked():
        await asyncio.sleep(0.01)
    assert code(await server.send()) == (409, "activation_running")
    assert code(await changed(server.client, f"{NAME}/load")) == (409, "activation_running")
    assert (await first).status_code == 200
    once = await server.probs("conditioned")
    assert (await server.send()).status_code == 200
    assert await server.probs("conditioned") == once
    assert code(await server.send(digest=digest)) == (409, "artifact_changed")
    assert await server.probs("conditioned") == once


async def test_what_is_refused_changes_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, before = await server.digest(), await server.probs()
    wrong = [*server.rows[:-1], server.rows[-1] | {"label": "so so"}]
    without = [*server.rows[:-1], {"label": "positive", "id": "z"}]
    for body, status, error, field in (
        ({"rows": wrong}, 422, "invalid_input", f"rows.{len(wrong) - 1}.label"),
        ({"rows": without}, 422, "invalid_input", f"rows.{len(without) - 1}.text"),
        ({"rows": server.rows[:5]}, 422, "conditioning_impossible", None),
        ({"rows": []}, 422, "conditioning_impossible", None),
        ({"rows": server.rows * 50}, 413, "batch_too_large", "rows"),
        ({"digest": "sha256:other"}, 409, "artifact_changed", "digest"),
    ):
        response = await server.send(**body)  # type: ignore[arg-type]
        assert code(response) == (status, error), response.text
        assert response.json()["error"].get("field") == field
    # Each at once: nothing is kept of it.
    assert (await server.client.get("/changes")).json()["changes"] == []

    def full(*args: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    for holder, name, value, refused in (
        (comparison, "WORSE", -1e6, (409, "conditioning_refused")),
        (os, "access", lambda *_: False, (409, "artifact_not_writable")),
        (Predictor, "outputs", full, (503, "device_memory")),
        (server.state.artifacts.shelf, "_max_bytes", 1, (409, "artifacts_full")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(comparison, "COST", -1e6)
            patched.setattr(holder, name, value)
            response = await server.send(force=name != "WORSE")
            assert code(response) == refused
            assert name != "WORSE" or "NLL" in response.json()["error"]["message"]
        assert await server.digest() == digest
    assert await server.probs() == before


async def test_another_version_on_the_disk_is_not_overwritten(server: Server, mixture_run: FinishedRun) -> None:
    """What is loaded conditions what is loaded: nobody's newer artifact goes for it."""
    shutil.rmtree(server.folder)
    shutil.copytree(mixture_run.artifact, server.folder)
    there = read_artifact(server.folder).digest
    response = await server.send()
    assert code(response) == (409, "artifact_changed")
    assert read_artifact(server.folder).digest == there


@pytest.mark.parametrize("learned", [False, True])
async def test_an_artifact_that_is_unloaded_meanwhile_does_not_come_back(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: bool
) -> None:
    """Unloaded while it learns it stays as it was; in the moment after the last check it has learned, and says so."""
    folder = Path(shutil.copytree(sentiment_run.artifact, tmp_path / NAME))
    reseal(Path(shutil.copytree(folder, tmp_path / "other")), name="other")
    before, begun, unloaded = read_artifact(folder).digest, threading.Event(), threading.Event()
    wanted = settings(artifact="other", also_load=NAME, artifacts_root=tmp_path, device="cpu", conditioning=True)
    async with started(app := create_app(wanted)) as client:
        holder, step = (app.state.artifacts.shelf, "check_fits") if learned else (versions, "learn")
        real = getattr(holder, step)

        def paused(*given: Any, **options: Any) -> Any:
            checked = real(*given, **options) if learned else None
            begun.set()
            unloaded.wait()
            return checked if learned else real(*given, **options)

        monkeypatch.setattr(holder, step, paused)
        learning = asyncio.create_task(
            changed(client, CONDITION, json={"rows": rows_of(sentiment_run)["test"], "force": True})
        )
        await asyncio.to_thread(begun.wait)
        assert (await client.post(f"/artifacts/{NAME}/unload")).status_code == 200
        unloaded.set()
        answer = await learning
        listed = (await client.get("/artifacts")).json()["artifacts"]
    assert {one["name"]: one["loaded"] for one in listed} == {NAME: False, "other": True}
    after = read_artifact(folder).digest
    if learned:
        assert answer.json()["artifact"]["digest"] == after != before
    else:
        assert code(answer) == (404, "artifact_not_loaded")
        assert after == before


async def test_no_pass_is_larger_than_a_batch_of_requests(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long rows keep requests waiting no longer than requests keep each other."""
    passes: list[tuple[int, int]] = []
    real = Predictor.outputs

    def noted(predictor: Predictor, rows: Any, *names: Any) -> Any:
        passes.append((len(rows), max(len(row.token_ids) for row in rows)))
        return real(predictor, rows, *names)

    monkeypatch.setattr(Predictor, "outputs", noted)
    server.state.backend.device.token_budget = budget = 64
    rows = [row | {"text": row["text"] * (1 + i % 2)} for i, row in enumerate(server.rows)]
    assert (await server.send(rows=rows)).status_code == 200
    assert sum(count for count, _ in passes) == len(rows)
    assert all(count * longest <= budget or count == 1 for count, longest in passes), passes


async def test_a_version_made_beside_its_artifact_never_takes_its_place(server: Server, tmp_path: Path) -> None:
    """Its packaged version has the other artifact's name."""
    beside, digest = tmp_path / "beside", await server.digest()
    laplora.condition(server.folder, server.rows, out=beside, device="cpu", progress=False, force=True)
    assert (await changed(server.client, "beside/load")).status_code == 200
    undone = await changed(server.client, "beside/condition/undo", json={})
    assert code(undone) == (422, "conditioning_impossible")
    assert NAME in undone.json()["error"]["message"]
    body = {"rows": server.rows[:24], "force": True}
    again = await changed(server.client, "beside/condition", json=body)
    assert again.status_code == 200, again.text
    assert again.json()["artifact"]["name"] == read_artifact(beside).name == "beside"
    listed = (await server.client.get("/artifacts")).json()["artifacts"]
    assert {one["name"]: one["loaded"] for one in listed} == {NAME: True, "beside": True}
    assert await server.digest() == digest


async def test_an_artifact_behind_a_link_is_refused_before_anything_is_computed(
    sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(sentiment_run.artifact)
    app = create_app(settings(artifact=str(tmp_path / "link"), device="cpu", conditioning=True))
    async with started(app) as client:
        response = await changed(client, CONDITION, json={"rows": rows_of(sentiment_run)["test"], "force": True})
    assert code(response) == (409, "artifact_not_writable")
    assert str(tmp_path) not in response.text


async def test_it_is_off_unless_it_is_asked_for(served: Served) -> None:
    for path, body in (("condition", {"rows": [{"text": "a", "label": "positive"}]}), ("condition/undo", {})):
        assert code(await changed(served.client, f"fake/{path}", json=body)) == (404, "conditioning_off")
