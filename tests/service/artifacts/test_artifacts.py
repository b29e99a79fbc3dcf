"""Several artifacts at once over HTTP: chosen by name, loaded and unloaded while others answer."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import FakePredictor, artifacts_in, code, library, serve, settings, started

from laplora.errors import GoldenMismatchError
from service.app import create_app

pytestmark = pytest.mark.anyio


async def names(client: httpx.AsyncClient) -> dict[str, bool]:
    """Return what is listed, and whether it is loaded."""
    return {a["name"]: a["loaded"] for a in (await client.get("/artifacts")).json()["artifacts"]}


async def test_request_chooses_among_the_loaded(tmp_path: Path) -> None:
    first, second, third = artifacts_in(tmp_path, "first", "second", "third")
    async with serve(first, second, third, artifact="first", also_load="second", artifacts_root=tmp_path) as served:
        answers = [await served.predict("a", **({"artifact": n} if n else {})) for n in (None, "first", "second")]
        refused = await served.predict("a", artifact="third")
        unknown = await served.predict("a", artifact="nobody")
        loaded = await served.client.post("/artifacts/third/load")
        after = await served.predict("a", artifact="third")
        measured = await served.client.post(
            "/evaluate", json={"inputs": [{"text": "a", "label": "positive"}], "artifact": "third"}
        )
        described = await served.client.get("/v2/models/third")
        listing = (await served.client.get("/artifacts")).json()
    assert [a.json()["artifact"]["name"] for a in answers] == ["first", "first", "second"]
    assert (code(refused), code(unknown)) == ((409, "artifact_not_loaded"), (404, "artifact_not_found"))
    assert refused.json()["error"]["field"] == "artifact"
    assert loaded.json()["artifact"]["name"] == after.json()["artifact"]["name"] == "third"
    assert loaded.json()["unloaded"] == []
    assert measured.json()["artifact"]["digest"] == described.json()["versions"][0] == "sha256:third"
    assert listing["active"] == "first"
    assert [(a["name"], a["active"], a["memory_bytes"], a["requests"]) for a in listing["artifacts"]] == [
        ("first", True, 1000, 0),
        ("second", False, 1000, 0),
        ("third", False, 1000, 0),
    ]
    # Its own first pass of each predictive apart, every row went to the artifact that was named.
    assert [len(p.batches) for p in (first, second)] == [2, len(second.predictives) + 1]


async def test_rows_of_two_artifacts_never_share_a_batch(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    async with serve(first, second, artifact="first", also_load=("second",), artifacts_root=tmp_path) as served:
        second.batches.clear()
        answers = await asyncio.gather(
            *(served.predict(str(100 + i), artifact=("first", "second")[i % 2]) for i in range(40))
        )
    for i, answer in enumerate(answers):
        assert answer.json()["artifact"]["name"] == ("first", "second")[i % 2]
        assert round(answer.json()["predictions"][0]["map_probs"]["negative"] * 100_000) == 100 + i
    for parity, predictor in enumerate((first, second)):
        tokens = {max(row.token_ids) for _, rows in predictor.batches for row in rows}
        assert tokens == {100 + i for i in range(40) if i % 2 == parity}


async def test_unloading_drops_nothing_under_way(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    async with serve(first, second, artifact="first", also_load=("second",), artifacts_root=tmp_path) as served:
        second.hold()
        running, waiting = (asyncio.create_task(served.predict(text, artifact="second")) for text in ("a", "b"))
        await asyncio.to_thread(second.entered.wait)
        await served.until(lambda: served.state.artifacts.shelf.places[1].leases == 2)
        unloaded = await served.client.post("/artifacts/second/unload")
        refused = await served.predict("c", artifact="second")
        again = await served.client.post("/artifacts/second/unload")
        second.released.set()
        before = [await task for task in (running, waiting)]
        active = await served.client.post("/artifacts/first/unload")
        unknown = await served.client.post("/artifacts/nobody/unload")
        listed = await names(served.client)
    assert unloaded.json()["artifact"]["name"] == "second"
    assert [a.json()["artifact"]["name"] for a in before] == ["second", "second"]
    assert code(refused) == code(again) == (409, "artifact_not_loaded")
    assert code(active) == (409, "artifact_active")
    assert code(unknown) == (404, "artifact_not_found")
    assert listed == {"first": True, "second": False}


async def test_loading_makes_room_and_says_what_went(tmp_path: Path) -> None:
    predictors = artifacts_in(tmp_path, "first", "second", "third")
    async with serve(*predictors, artifact="first", max_artifacts=2, artifacts_root=tmp_path) as served:
        await served.client.post("/artifacts/second/load")
        made_room = await served.client.post("/artifacts/third/load")
        predictors[2].hold()
        running = asyncio.create_task(served.predict("a", artifact="third"))
        await asyncio.to_thread(predictors[2].entered.wait)
        full = await served.client.post("/artifacts/second/load")
        predictors[2].released.set()
        assert (await running).status_code == 200
        listed = await names(served.client)
    assert made_room.json()["unloaded"] == ["second"]
    assert code(full) == (409, "artifacts_full")
    assert full.json()["error"]["limit"] == 2
    assert listed == {"first": True, "third": True, "second": False}


async def test_broken_candidate_leaves_all_as_it_was(tmp_path: Path) -> None:
    predictors = artifacts_in(tmp_path, "first", "second", "third")
    predictors[2].golden_error = GoldenMismatchError("off")
    async with serve(
        *predictors, artifact="first", also_load=("second",), max_artifacts=2, artifacts_root=tmp_path
    ) as served:
        refused = await served.client.post("/artifacts/third/load")
        listed = await names(served.client)
        assert (await served.predict("a", artifact="second")).status_code == 200
    assert code(refused) == (409, "golden_mismatch")
    assert listed == {"first": True, "second": True, "third": False}


async def test_another_base_is_activated_and_not_loaded_beside(tmp_path: Path) -> None:
    first, second, third = artifacts_in(tmp_path, "first", "second", "third")
    third.base = third.artifact.manifest.base = SimpleNamespace(model="other", quantization="nf4", dtype="bfloat16")
    async with serve(first, second, third, artifact="first", also_load=("second",), artifacts_root=tmp_path) as served:
        beside = await served.client.post("/artifacts/third/load")
        assert third.batches == []
        activated = await served.client.post("/artifacts/third/activate")
        listed = await names(served.client)
        assert (await served.predict("a")).json()["artifact"]["name"] == "third"
    assert code(beside) == (409, "artifact_incompatible")
    assert "nf4" in beside.json()["error"]["message"]
    assert sorted(activated.json()["unloaded"]) == ["first", "second"]
    assert listed == {"third": True, "first": False, "second": False}


async def test_activating_a_loaded_one_loads_nothing(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    async with serve(first, second, artifact="first", also_load=("second",), artifacts_root=tmp_path) as served:
        second.batches.clear()
        activated = (await served.client.post("/artifacts/second/activate")).json()
        assert second.batches == []
        metrics = (await served.client.get("/metrics")).text
        assert (await served.predict("a")).json()["artifact"]["name"] == "second"
        assert (await served.client.post("/artifacts/first/unload")).status_code == 200
    assert (activated["previous"], activated["unloaded"]) == ("first", [])
    assert 'laplora_artifact_info{active="true",digest="sha256:second",name="second"} 1.0' in metrics
    assert 'laplora_artifact_info{active="false",digest="sha256:first",name="first"} 1.0' in metrics


async def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    copy = FakePredictor("second", path=tmp_path / "copy")
    copy.artifact.digest = "sha256:copy"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "manifest.json").write_text("{}")
    by_folder: dict[str, Any] = {"first": first, "second": second, "copy": copy}
    fake = library()
    fake = type(fake)(lambda path, s, p: by_folder[path.name], lambda path: by_folder[path.name].artifact)
    app = create_app(settings(artifact="first", also_load="second", artifacts_root=tmp_path), library=fake)
    async with started(app) as client:
        refused = await client.post("/artifacts/copy/load")
        assert code(refused) == (409, "artifact_incompatible")
        assert (await client.post("/artifacts/second/unload")).status_code == 200
        loaded = await client.post("/artifacts/copy/load")
        assert loaded.json()["artifact"]["digest"] == "sha256:copy"
        for name in ("second", "copy"):
            answer = await client.post("/predict", json={"inputs": [{"text": "a"}], "artifact": name})
            assert answer.json()["artifact"]["digest"] == "sha256:copy"


async def test_not_ready_until_every_artifact_to_start_with_has_passed(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    may_replay, replaying = threading.Event(), threading.Event()

    def golden_answer() -> list[Any]:
        replaying.set()
        may_replay.wait()
        return []

    second.golden_answer = golden_answer  # type: ignore[method-assign]
    async with serve(
        first, second, artifact="first", also_load=("second",), artifacts_root=tmp_path, wait=False
    ) as served:
        await asyncio.to_thread(replaying.wait)
        assert code(await served.client.get("/health/ready")) == (503, "not_ready")
        assert code(await served.predict("a")) == (503, "not_ready")
        may_replay.set()
        await served.until(lambda: served.state.artifacts.active is not None)
        assert (await served.predict("a", artifact="second")).status_code == 200


async def test_what_is_unloaded_while_it_is_activated_is_loaded_again(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    async with serve(first, second, artifact="first", also_load=("second",), artifacts_root=tmp_path) as served:
        shelf = served.state.artifacts.shelf
        activate, second.batches = shelf.activate, []

        def unload_first(name: str) -> bool:
            shelf.remove("second")
            return bool(activate(name))

        shelf.activate = unload_first
        activated = await served.client.post("/artifacts/second/activate")
        answer = await served.predict("a")
    assert activated.status_code == 200
    assert activated.json()["artifact"]["name"] == answer.json()["artifact"]["name"] == "second"
    assert second.batches, "it was loaded and warmed up again"


@pytest.mark.parametrize(("also", "most"), [("nobody", 8), ("second", 1)])
async def test_artifacts_to_start_with_must_be_there_and_fit(tmp_path: Path, also: str, most: int) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    async with serve(
        first, second, artifact="first", also_load=(also,), max_artifacts=most, artifacts_root=tmp_path, wait=False
    ) as served:
        await served.until(lambda: served.state.artifacts.stage.startswith("failed"))
        assert code(await served.predict("a")) == (503, "not_ready")


async def test_changes_under_load_drop_nothing(tmp_path: Path) -> None:
    """Loading, activating and unloading all the while: each answer is 200, by the artifact that it names."""
    predictors = artifacts_in(tmp_path, "first", "second", "third")
    async with serve(*predictors, artifact="first", artifacts_root=tmp_path) as served:
        done = asyncio.Event()

        async def ask() -> list[httpx.Response]:
            answers = []
            while not done.is_set():
                answers.append(await served.predict("a"))
            return answers

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        changes = []
        steps = (("second", "activate"), ("first", "unload"), ("third", "activate"), ("first", "load"))
        for name, action in steps * 8:
            changes.append(await served.client.post(f"/artifacts/{name}/{action}"))
        done.set()
        answers = [answer for task in asking for answer in await task]
    assert {c.status_code for c in changes} == {200}
    assert len(answers) > 30
    assert {a.status_code for a in answers} == {200}
    for answer in answers:
        artifact = json.loads(answer.text)["artifact"]
        assert artifact["digest"] == f"sha256:{artifact['name']}"
