"""Readiness, full queues, deadlines, disconnects, draining, and swapping artifacts under way."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from limits import longer_and_longer
from serving import FakePredictor, LeavingClient, artifacts_in, code, serve, settings, started

from service.app import create_app
from service.artifacts.predictors import Library

pytestmark = pytest.mark.anyio


async def test_live_at_once_and_ready_after_loading_and_golden_replay() -> None:
    predictor = FakePredictor()
    may_load, may_replay, order = threading.Event(), threading.Event(), []

    def load(path: Path, settings: Any, progress: Any) -> Any:
        progress("reading the weights")
        may_load.wait()
        order.append("loaded")
        return predictor

    def golden_answer() -> list[Any]:
        may_replay.wait()
        order.append("replayed")
        return []

    predictor.golden_answer = golden_answer  # type: ignore[method-assign]
    app = create_app(settings(), library=Library(load, lambda path: predictor.artifact))  # type: ignore[arg-type,return-value]
    async with started(app, ready=False) as client:
        host = app.state.artifacts
        while host.stage != "reading the weights":
            await asyncio.sleep(0.005)
        assert (await client.get("/health/live")).json() == {"status": "live"}
        for request in (
            client.get("/health/ready"),
            client.get("/tei/health"),
            client.get("/tei/info"),
            client.post("/predict", json={"inputs": [{"text": "a"}]}),
            client.post("/artifacts/fake/activate"),
        ):
            response = await request
            status, said = code(response)
            assert status == 503
            assert int(response.headers["retry-after"]) >= 1
            error = response.json()["error"]
            assert "reading the weights" in (error if isinstance(error, str) else error["message"])
            assert said in (error, "not_ready")
        assert (await client.get("/artifacts")).json() == {"active": None, "artifacts": []}
        may_load.set()
        while host.stage != "replaying the golden answers":
            await asyncio.sleep(0.005)
        assert code(await client.get("/health/ready")) == (503, "not_ready")
        may_replay.set()
        while host.active is None:
            await asyncio.sleep(0.005)
        assert (await client.get("/health/ready")).json()["artifact"]["name"] == "fake"
    assert order == ["loaded", "replayed"]


async def test_artifact_that_cannot_be_served_is_reported_and_never_ready() -> None:
    failures: list[Exception] = []
    error = RuntimeError("anything")

    def load(path: Path, settings: Any, progress: Any) -> Any:
        raise error

    app = create_app(settings(), library=Library(load, lambda path: SimpleNamespace()), on_load_failure=failures.append)  # type: ignore[arg-type,return-value]
    async with started(app, ready=False) as client:
        while not failures:
            await asyncio.sleep(0.005)
        response = await client.get("/health/ready")
    assert failures == [error]
    assert code(response) == (503, "not_ready")
    assert "RuntimeError" in response.json()["error"]["message"]


async def test_deadline_is_504_and_frees_the_queue() -> None:
    """However long the device is busy."""
    for limit_s in longer_and_longer():
        async with serve(request_timeout_s=limit_s) as served:
            served.predictor.hold()
            assert code(await served.predict("a")) == (504, "deadline_exceeded")
            if not served.predictor.entered.is_set():
                continue  # it was over before the device had it
            assert code(await served.predict("b 77777")) == (504, "deadline_exceeded")
            assert served.state.backend.queue.rows == 0
            served.predictor.released.set()
            break
    assert all(77777 not in row.token_ids for _, rows in served.predictor.batches for row in rows)


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


async def test_artifacts_are_listed_with_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
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
    assert "the base's weights are plain: nothing is quantized" in caplog.text
    assert "Jacobians are automatic: a fake has none" in caplog.text


async def test_changed_content_under_the_same_name_is_loaded_again(tmp_path: Path) -> None:
    first, renewed = *artifacts_in(tmp_path, "first"), FakePredictor("first", path=tmp_path / "first")
    renewed.artifact.digest = "sha256:renewed"
    current = [first]
    fake = Library(lambda path, settings, progress: current[0], lambda path: current[0].artifact)  # type: ignore[arg-type,return-value]
    app = create_app(settings(artifact="first", artifacts_root=tmp_path), library=fake)
    async with started(app) as client:
        current[0] = renewed
        answer = (await client.post("/artifacts/first/activate")).json()
    assert answer["artifact"]["digest"] == "sha256:renewed"
