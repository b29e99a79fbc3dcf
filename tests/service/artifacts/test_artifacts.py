"""Several artifacts at once over HTTP: chosen by name, loaded and unloaded while others answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import FakePredictor, Served, artifacts_in, changed, code, serve, settings, started

from laplora.errors import ArtifactCorruptError, DownloadError, GoldenMismatchError, ModelError
from service.app import create_app
from service.artifacts.predictors import Library

pytestmark = pytest.mark.anyio


@dataclass
class Three:
    """A server with first, active, and second loaded, and third in its root."""

    served: Served
    first: FakePredictor
    second: FakePredictor
    third: FakePredictor

    async def post(self, change: str) -> httpx.Response:
        return await changed(self.served.client, change)

    async def loaded(self) -> set[str]:
        listed = (await self.served.client.get("/artifacts")).json()["artifacts"]
        assert {a["name"] for a in listed} == {"first", "second", "third"}
        return {a["name"] for a in listed if a["loaded"]}


@asynccontextmanager
async def three_in(root: Path, **values: Any) -> AsyncIterator[Three]:
    predictors = artifacts_in(root, "first", "second", "third")
    async with serve(*predictors, artifact="first", artifacts_root=root, **{"also_load": "second"} | values) as served:
        for predictor in predictors:
            predictor.batches.clear()
        yield Three(served, *predictors)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    async with three_in(tmp_path) as three:
        yield three


def named(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    name: str = answer.json()["artifact"]["name"]
    return name


async def test_request_chooses_among_the_loaded(three: Three) -> None:
    predict, client = three.served.predict, three.served.client
    assert named(await predict("a")) == "first"
    assert named(await predict("a", artifact="first")) == "first"
    assert named(await predict("a", artifact="second")) == "second"
    assert [len(p.batches) for p in (three.first, three.second)] == [2, 1]
    refused = await predict("a", artifact="third")
    assert code(refused) == (404, "artifact_not_loaded")
    assert refused.json()["error"]["field"] == "artifact"
    assert code(await predict("a", artifact="nobody")) == (404, "artifact_not_found")
    loaded = await three.post("third/load")
    assert (named(loaded), loaded.json()["unloaded"]) == ("third", [])
    assert named(await predict("a", artifact="third")) == "third"
    labelled = {"inputs": [{"text": "a", "label": "positive"}], "artifact": "third", "options": {"resamples": 10}}
    assert named(await client.post("/evaluate", json=labelled)) == "third"
    assert (await client.get("/v1/models")).json()["models"][2]["name"] == "third"
    listing = (await client.get("/artifacts")).json()
    assert listing["active"] == "first"
    assert [(a["name"], a["active"], a["memory_bytes"], a["requests"]) for a in listing["artifacts"]] == [
        ("first", True, 1000, 0),
        ("second", False, 1000, 0),
        ("third", False, 1000, 0),
    ]


async def test_every_route_says_which_artifact_is_not_there_and_which_is_not_loaded(tmp_path: Path) -> None:
    inputs = {"inputs": [{"text": "a"}]}
    labelled = {"inputs": [{"text": "a", "label": "positive"}]}
    async with three_in(tmp_path, conditioning=True) as three:
        client = three.served.client
        for name, refused in (("nobody", "artifact_not_found"), ("third", "artifact_not_loaded")):
            scoring = [("/predict", inputs), ("/evaluate", labelled), ("/suggest", inputs)]
            answers = [await client.post(path, json={**body, "artifact": name}) for path, body in scoring]
            upload = {
                "content": b'{"text": "a", "label": "positive"}',
                "headers": {"content-type": "application/jsonl"},
            }
            answers.append(await client.post(f"/evaluate/jobs?artifact={name}", **upload))
            answers.append(await three.post(f"{name}/unload"))
            rows = {"rows": labelled["inputs"] * 20}
            for change, changed in (("condition", rows), ("condition/undo", {})):
                answers.append(await client.post(f"/artifacts/{name}/{change}", json=changed))
            for answer in answers:
                assert code(answer) == (404, refused), answer.url
            asked = {"state": "a", "questions": {"q": {"type": "noul"}}, "model": name}
            answer = await client.post("/v1/systemone", json=asked)
            assert (answer.status_code, answer.json()["detail"]["error_type"]) == (404, refused)
        for answer in (await three.post("nobody/load"), await client.get("/artifacts/nobody/report")):
            assert code(answer) == (404, "artifact_not_found")


async def test_rows_of_two_artifacts_never_share_a_batch(three: Three) -> None:
    names = ("first", "second")
    asked = (three.served.predict(str(100 + i), artifact=names[i % 2]) for i in range(40))
    for i, answer in enumerate(await asyncio.gather(*asked)):
        assert named(answer) == names[i % 2]
        assert round(answer.json()["predictions"][0]["map_probs"]["negative"] * 100_000) == 100 + i
    for parity, predictor in enumerate((three.first, three.second)):
        tokens = {max(row.token_ids) for _, rows in predictor.batches for row in rows}
        assert tokens == set(range(100 + parity, 140, 2))


async def test_unloading_drops_nothing_under_way(three: Three) -> None:
    served, second = three.served, three.second
    second.hold()
    running, waiting = (asyncio.create_task(served.predict(text, artifact="second")) for text in ("a", "b"))
    await asyncio.to_thread(second.entered.wait)
    await served.until(lambda: served.state.artifacts.shelf.places[1].leases == 2)
    assert named(await three.post("second/unload")) == "second"
    assert code(await served.predict("c", artifact="second")) == (404, "artifact_not_loaded")
    assert code(await three.post("second/unload")) == (404, "artifact_not_loaded")
    second.released.set()
    assert [named(await task) for task in (running, waiting)] == ["second", "second"]
    assert code(await three.post("first/unload")) == (409, "artifact_active")
    assert code(await three.post("nobody/unload")) == (404, "artifact_not_found")
    assert await three.loaded() == {"first"}


async def test_loading_makes_room_and_says_what_went(tmp_path: Path) -> None:
    async with three_in(tmp_path, max_artifacts=2) as three:
        assert (await three.post("third/load")).json()["unloaded"] == ["second"]
        async with three.served.occupied(three.third):
            full = await three.post("second/load")
        assert await three.loaded() == {"first", "third"}
    assert code(full) == (409, "artifacts_full")
    assert full.json()["error"]["limit"] == 2


async def test_broken_candidate_leaves_all_as_it_was(tmp_path: Path) -> None:
    async with three_in(tmp_path, max_artifacts=2) as three:
        for error, refused in (
            (ArtifactCorruptError("cut"), "artifact_corrupt"),
            (GoldenMismatchError("off"), "golden_mismatch"),
            (ModelError("no lora"), "model_unsupported"),
            (DownloadError("offline"), "model_unavailable"),
            (OSError("disk"), "artifact_incompatible"),
        ):
            three.third.golden_error = error
            for change in ("load", "activate"):
                assert code(await three.post(f"third/{change}")) == (409, refused)
        assert await three.loaded() == {"first", "second"}
        assert named(await three.served.predict("a")) == "first"
        assert named(await three.served.predict("a", artifact="second")) == "second"
        assert code(await three.post("nobody/activate")) == (404, "artifact_not_found")


async def test_another_base_is_activated_and_not_loaded_beside(three: Three) -> None:
    third = three.third
    third.base = third.artifact.manifest.base = SimpleNamespace(model="other", quantization="nf4", dtype="bfloat16")
    beside = await three.post("third/load")
    assert code(beside) == (409, "artifact_incompatible")
    assert "nf4" in beside.json()["error"]["message"]
    assert third.batches == []
    assert sorted((await three.post("third/activate")).json()["unloaded"]) == ["first", "second"]
    assert await three.loaded() == {"third"}
    assert named(await three.served.predict("a")) == "third"


async def test_activating_a_loaded_one_loads_nothing_unless_it_is_unloaded_meanwhile(three: Three) -> None:
    activated = (await three.post("second/activate")).json()
    assert (activated["previous"], activated["unloaded"], three.second.batches) == ("first", [], [])
    metrics = (await three.served.client.get("/metrics")).text
    for name, active in (("second", "true"), ("first", "false")):
        assert f'laplora_artifact_info{{active="{active}",digest="sha256:{name}",name="{name}"}} 1.0' in metrics
    assert named(await three.served.predict("a")) == "second"
    shelf = three.served.state.artifacts.shelf
    activate = shelf.activate

    def unload_first(name: str) -> bool:
        shelf.remove(name)
        return bool(activate(name))

    shelf.activate = unload_first
    assert named(await three.post("first/activate")) == "first"
    assert three.first.batches, "it was loaded and warmed up again"
    assert named(await three.post("second/unload")) == "second"


async def test_two_folders_of_one_name_are_refused_and_changed_content_is_loaded_again(tmp_path: Path) -> None:
    by_folder = {p.artifact.name: p for p in artifacts_in(tmp_path, "first", "second", "copy")}
    by_folder["copy"].artifact.name = "second"
    fake = Library(lambda path, *_: by_folder[path.name], lambda path: by_folder[path.name].artifact)  # type: ignore[arg-type,return-value]
    app = create_app(settings(artifact="first", also_load="second", artifacts_root=tmp_path), library=fake)
    async with started(app) as client:
        assert code(await changed(client, "copy/load")) == (409, "artifact_incompatible")
        assert (await client.post("/artifacts/second/unload")).status_code == 200
        assert (await changed(client, "copy/load")).json()["artifact"]["digest"] == "sha256:copy"
        for name in ("second", "copy"):
            answer = await client.post("/predict", json={"inputs": [{"text": "a"}], "artifact": name})
            assert answer.json()["artifact"]["digest"] == "sha256:copy"
        by_folder["first"] = FakePredictor("first", path=tmp_path / "first")
        by_folder["first"].artifact.digest = "sha256:renewed"
        answer = await changed(client, "first/activate")
        assert answer.json()["artifact"]["digest"] == "sha256:renewed"


@pytest.mark.parametrize("values", [{"also_load": "nobody"}, {"max_artifacts": 1}, {}])
async def test_artifacts_to_start_with_must_be_there_and_fit_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    if not values:
        monkeypatch.setattr(FakePredictor, "verify_golden", lambda self, run: {}["secret"])
    async with three_in(tmp_path, wait=False, **values) as three:
        await three.served.until(lambda: three.served.state.artifacts.stage.startswith("failed"))
        for refused in (await three.served.predict("a"), await three.served.client.get("/health/ready")):
            assert code(refused) == (503, "not_ready")
            assert ("KeyError" in refused.text, "secret" in refused.text) == (not values, False)
        assert 'laplora_startup_phase{phase="failed"} 1.0' in (await three.served.client.get("/metrics")).text
