"""A load that hangs: given up after a time, told by name, its result dropped, and what is loaded goes on."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import artifacts_in, code, library, settings, started

from service.app import create_app
from service.artifacts.bounded_load import BoundedLoads
from service.artifacts.predictors import Library
from service.errors import LoadStuckError, LoadTimeoutError


class Hanging:
    """A library whose load of ``second`` hangs, in the call named, until it is let go."""

    def __init__(self, root: Path) -> None:
        self.first, self.second, self.third = artifacts_in(root, "first", "second", "third")
        self.let_go = threading.Event()
        self.hangs_in = "load"
        known = library(self.first, self.second, self.third)

        def load(path: Path, settings: Any, progress: Any) -> Any:
            self._perhaps_hang("load", path)
            return known.load(path, settings, progress)

        def read(path: Path) -> Any:
            self._perhaps_hang("read", path)
            return known.read(path)

        self.as_library = Library(load, read)

    def _perhaps_hang(self, call: str, path: Path) -> None:
        if call == self.hangs_in and path.name == "second":
            self.let_go.wait()


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    hanging = Hanging(tmp_path)
    yield hanging
    hanging.let_go.set()


@asynccontextmanager
async def served(hanging: Hanging, root: Path) -> AsyncIterator[httpx.AsyncClient]:
    values = {"artifact": "first", "artifacts_root": root, "load_timeout_s": 0.2}
    async with started(create_app(settings(**values), library=hanging.as_library)) as client:
        yield client


@pytest.mark.anyio
@pytest.mark.parametrize("hangs_in", ["load", "read"])
@pytest.mark.parametrize("change", ["load", "activate"])
async def test_a_load_that_hangs_is_given_up_and_told(
    hanging: Hanging, tmp_path: Path, hangs_in: str, change: str
) -> None:
    async with served(hanging, tmp_path) as client:
        assert (await client.post("/artifacts/third/load")).status_code == 200
        hanging.hangs_in = hangs_in
        assert code(await client.post(f"/artifacts/second/{change}")) == (504, "load_timeout")
        # Others cannot be loaded beside memory that nobody can count; whoever is asked says so.
        refused = await client.post(f"/artifacts/second/{change}")
        assert code(refused) == (409, "load_stuck")
        assert "restart" in refused.json()["error"]["message"]
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["stuck_load"]) == (200, "second")
        assert "laplora_abandoned_load 1.0" in (await client.get("/metrics")).text.splitlines()
        # What is loaded answers, and can take the active one's place.
        assert (await client.post("/predict", json={"inputs": [{"text": "a"}]})).status_code == 200
        assert (await client.post("/artifacts/third/activate")).json()["previous"] == "first"
        assert (await client.get("/health/ready")).json()["artifact"]["name"] == "third"
        hanging.let_go.set()
        while (await client.get("/health/ready")).json()["stuck_load"] is not None:
            await asyncio.sleep(0.005)
        assert "laplora_abandoned_load 0.0" in (await client.get("/metrics")).text.splitlines()
        # What came of it was dropped, and the next one is as if it had never been.
        loaded = [a["name"] for a in (await client.get("/artifacts")).json()["artifacts"] if a["loaded"]]
        assert sorted(loaded) == ["first", "third"]
        assert (await client.post(f"/artifacts/second/{change}")).status_code == 200


@pytest.mark.anyio
async def test_what_is_unloaded_beside_a_stuck_load_is_not_said_to_be_active(hanging: Hanging, tmp_path: Path) -> None:
    app = create_app(
        settings(artifact="first", also_load="third", artifacts_root=tmp_path, load_timeout_s=0.2),
        library=hanging.as_library,
    )
    async with started(app) as client:
        assert code(await client.post("/artifacts/second/load")) == (504, "load_timeout")
        shelf = app.state.artifacts.shelf
        activate = shelf.activate

        def unload_first(name: str) -> bool:
            shelf.remove("third")
            return bool(activate(name))

        shelf.activate = unload_first
        assert code(await client.post("/artifacts/third/activate")) == (409, "load_stuck")
        assert (await client.get("/health/ready")).json()["artifact"]["name"] == "first"


class Result:
    pass


def test_the_late_result_is_gone_before_another_load_may_begin() -> None:
    told: list[bool] = []
    let_go, results = threading.Event(), []

    def load(go_on: Any) -> Result:
        let_go.wait()
        result = Result()
        results.append(weakref.ref(result))
        return result

    loads = BoundedLoads(0.01, told.append)
    with pytest.raises(LoadTimeoutError):
        loads.run("slow", load)
    with pytest.raises(LoadStuckError, match="slow"):
        loads.run("other", load)
    assert (loads.stuck, told) == ("slow", [True])
    let_go.set()
    while loads.stuck:
        threading.Event().wait(0.001)
    gc.collect()
    assert results[0]() is None
    assert told == [True, False]
    assert isinstance(loads.run("slow", load), Result)


def test_a_load_ends_at_its_next_step_once_it_is_given_up() -> None:
    steps: list[str] = []
    let_go = threading.Event()

    def load(go_on: Any) -> None:
        let_go.wait()
        go_on()
        steps.append("went on")

    loads = BoundedLoads(0.01)
    with pytest.raises(LoadTimeoutError):
        loads.run("slow", load)
    let_go.set()
    while loads.stuck:
        threading.Event().wait(0.001)
    assert steps == []


@pytest.mark.parametrize("error", [TimeoutError("the disk"), KeyError("bug"), SystemExit()])
def test_errors_of_a_load_come_through(error: BaseException) -> None:
    def load(go_on: Any) -> None:
        raise error

    loads = BoundedLoads(60)
    with pytest.raises(type(error)) as caught:
        loads.run("broken", load)
    assert caught.value is error
    assert loads.stuck is None
