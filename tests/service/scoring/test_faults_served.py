"""Faults of the device over HTTP: every endpoint says so, and nothing undoes them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from serving import FakePredictor, Served, artifacts_in, changed, code, library, serve, settings, started

from laplora.errors import ArtifactCorruptError
from service.app import create_app
from service.artifacts.predictors import Library

pytestmark = pytest.mark.anyio

FAULT = "CUDA error: device-side assert triggered"


async def test_a_slow_replay_of_many_answers_is_no_hung_device(tmp_path: Path) -> None:
    """Each answer is a run of its own, and a request that waits goes before the next."""
    first, second = artifacts_in(tmp_path, "first", "second")
    second.golden_answers = 4
    begun: list[float | None] = []
    answered: list[int] = []
    requests: list[Any] = []
    loop = asyncio.get_running_loop()

    def golden_answer() -> list[Any]:
        begun.append(served.state.backend.device.health._run_began)
        answered.append(len(first.batches))
        requests.append(asyncio.run_coroutine_threadsafe(served.predict("7"), loop))
        with served.state.backend.queue.changed:
            served.state.backend.queue.changed.wait_for(lambda: served.state.backend.queue.rows)
        return []

    second.golden_answer = golden_answer  # type: ignore[method-assign]
    async with serve(first, second, artifact="first", artifacts_root=tmp_path) as served:
        assert (await changed(served.client, "second/load")).status_code == 200
        responses = [await asyncio.wrap_future(request) for request in requests]
    assert len({*begun, None}) == 5, "the time of a run begins anew with each answer"
    assert answered == [0, 1, 2, 3]
    assert [response.status_code for response in responses] == [200] * 4


async def test_every_endpoint_says_that_the_device_failed(caplog: pytest.LogCaptureFixture) -> None:
    predictor = FakePredictor()
    predictor.poison[666] = RuntimeError(f"{FAULT} SECRET")
    async with serve(predictor) as served:
        get, post = served.client.get, served.client.post
        assert "laplora_ready 1.0" in (await get("/metrics")).text
        predictor.hold()
        running = asyncio.create_task(served.predict("666"))
        await asyncio.to_thread(predictor.entered.wait)
        waiting = asyncio.create_task(served.predict("a", options={"predictive": "map"}))
        await served.until(lambda: served.state.backend.queue.rows == 1)
        predictor.released.set()
        answers = [
            await running,
            await waiting,
            await served.predict("b"),
            await post("/evaluate", json={"inputs": [{"text": "a", "label": "positive"}]}),
            await post("/artifacts/fake/activate"),
            await get("/health/ready"),
        ]
        for response in answers:
            assert code(response) == (503, "device_fault")
            assert int(response.headers["retry-after"]) >= 1
            assert "SECRET" not in response.text
        assert (await get("/health/live")).json() == {"status": "live"}
        assert "laplora_ready 0.0" in (await get("/metrics")).text
        served.state.lifecycle.drain()
        assert code(await served.predict("b")) == (503, "device_fault")
    (event,) = [r for r in caplog.records if getattr(r, "event", "") == "device_fault"]
    assert vars(event)["error"] == "RuntimeError"
    assert vars(event)["frames"]
    assert not any("SECRET" in str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize("where", ["hidden in load", "golden", "first answer"])
async def test_a_fault_while_another_artifact_loads(tmp_path: Path, where: str) -> None:
    """The context is the process's: the artifact that answers has lost it too."""
    first, second = artifacts_in(tmp_path, "first", "second")
    known = library(first, second)

    def load(path: Path, *others: Any) -> Any:
        if path.name == "second" and where == "hidden in load":
            try:
                raise RuntimeError(FAULT)
            except RuntimeError:
                raise ArtifactCorruptError("the adapter does not load") from None
        return known.load(path, *others)

    if where == "golden":
        second.golden_error = RuntimeError(FAULT)
    elif where == "first answer":
        second.poison[1] = RuntimeError(FAULT)
    app = create_app(settings(artifact="first", artifacts_root=tmp_path), library=Library(load, known.read))
    async with started(app) as client:
        refused = await changed(client, "second/activate")
        ready = await client.get("/health/ready")
    assert code(refused) == code(ready) == (503, "device_fault")


#: A run is overdue soon, and never taken to hang.
OVERDUE = {"stall_s": 0.05, "hang_s": 3600.0}


async def until_stalled(served: Served) -> None:
    while (response := await served.client.get("/health/ready")).status_code == 200:
        await asyncio.sleep(0.005)
    assert code(response) == (503, "device_stalled")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_run_or_a_call_that_is_overdue_is_not_ready_until_it_ends() -> None:
    may_end = threading.Event()
    async with serve(**OVERDUE) as served:
        async with served.occupied():
            await until_stalled(served)
            assert (await served.client.get("/health/live")).status_code == 200
            waiting = asyncio.create_task(served.predict("b"))
            await served.until(lambda: served.state.backend.queue.rows == 1)
        assert (await waiting).status_code == 200
        while (await served.client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.005)
        call = served.state.backend.device.call(may_end.wait)
        await until_stalled(served)
        may_end.set()
        assert call.result()
