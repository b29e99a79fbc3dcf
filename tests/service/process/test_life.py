"""Readiness, full queues, deadlines, disconnects, draining, and swapping artifacts under way."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from serving import LeavingClient, artifacts_in, code, serve, settings, started

from service.app import create_app
from service.artifacts.predictors import Library

pytestmark = pytest.mark.anyio


async def test_live_at_once_and_ready_once_every_artifact_has_passed_its_golden_replay(tmp_path: Path) -> None:
    predictors = {one.artifact.name: one for one in artifacts_in(tmp_path, "first", "second")}
    may_load, replaying, may_replay = threading.Event(), threading.Event(), threading.Event()

    def load(path: Path, settings: Any, progress: Any) -> Any:
        progress(f"reading {path.name}")
        may_load.wait()
        return predictors[path.name]

    def golden_answer() -> list[Any]:
        replaying.set()
        may_replay.wait()
        return []

    predictors["second"].golden_answer = golden_answer  # type: ignore[method-assign]
    wanted = settings(artifact="first", also_load="second", artifacts_root=tmp_path)
    app = create_app(wanted, library=Library(load, lambda path: predictors[path.name].artifact))  # type: ignore[arg-type,return-value]
    async with started(app, ready=False) as client:
        host = app.state.artifacts
        while host.stage != "reading first":
            await asyncio.sleep(0.005)
        assert (await client.get("/health/live")).json() == {"status": "live"}
        for request in (
            client.get("/health/ready"),
            client.post("/predict", json={"inputs": [{"text": "a"}]}),
            client.post("/artifacts/first/activate"),
        ):
            response = await request
            assert code(response) == (503, "not_ready")
            assert int(response.headers["retry-after"]) >= 1
            assert "reading first" in response.text
        assert (await client.get("/artifacts")).json()["active"] is None
        may_load.set()
        await asyncio.to_thread(replaying.wait)
        for request in (client.get("/health/ready"), client.post("/predict", json={"inputs": [{"text": "a"}]})):
            assert code(await request) == (503, "not_ready")
        may_replay.set()
        while host.active is None:
            await asyncio.sleep(0.005)
        assert (await client.get("/health/ready")).json()["artifact"]["name"] == "first"
        answer = await client.post("/predict", json={"inputs": [{"text": "a"}], "artifact": "second"})
        assert answer.json()["artifact"]["name"] == "second"


async def test_disconnect_frees_queued_rows() -> None:
    async with serve() as served, served.occupied():
        leaving = LeavingClient("POST", "/predict", b'{"inputs": [{"text": "b 77777"}]}')
        request = asyncio.create_task(leaving.call(served.app))
        await served.until(lambda: served.state.backend.queue.rows == 1)
        leaving.gone.set()
        await request
        assert served.state.backend.queue.rows == 0
        assert leaving.sent[0]["status"] == 499
    assert all(77777 not in row.token_ids for _, rows in served.predictor.batches for row in rows)


async def test_artifacts_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    artifacts_in(tmp_path, "broken", ".half-written")
    (tmp_path / "no-artifact").mkdir()
    async with serve(first, second, artifact="first", artifacts_root=tmp_path) as served:
        listing = (await served.client.get("/artifacts")).json()
    assert listing["active"] == "first"
    assert [(a["name"], a["active"], a["error"] is None) for a in listing["artifacts"]] == [
        ("first", True, True),
        ("broken", False, False),
        ("second", False, True),
    ]
    loaded, *others = listing["artifacts"]
    measured = {"laplace": {"empirical_coverage": 0.914, "mean_size": 1.2, "rows": 500}}
    assert loaded["prediction_sets"] == {"nominal_coverage": 0.9, "calibration_rows": 150, "measured": measured}
    broken = next(one for one in others if one["name"] == "broken")
    assert broken["prediction_sets"] is None
    assert loaded["weights"] == {"held": "plain", "reason": "nothing is quantized"}
    assert loaded["reverse_pass"] == {"kind": "automatic", "reason": "a fake has none"}
    assert {other[name] for other in others for name in ("weights", "reverse_pass")} == {None}
