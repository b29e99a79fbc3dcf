"""A load that hangs: given up after a time, told by name, its result dropped, and what is loaded goes on."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from serving import GIVE_UP_S, artifacts_in, changed, code, library, settings, started

from service.app import create_app
from service.artifacts.bounded_load import BoundedLoads
from service.artifacts.predictors import Library
from service.errors import LoadStuckError, LoadTimeoutError


@asynccontextmanager
async def hanging(
    root: Path, hangs_in: str, let_go: threading.Event
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """Yield a server of first and third, where this library call on second hangs until it is let go."""
    known = library(*artifacts_in(root, "first", "second", "third"))

    def hang(step: str, path: Path, *more: Any) -> Any:
        if (hangs_in, path.name) == (step, "second"):
            let_go.wait()
        return getattr(known, step)(path, *more)

    values = {"artifact": "first", "also_load": "third", "artifacts_root": root, "load_timeout_s": 0.2}
    app = create_app(settings(**values), library=Library(partial(hang, "load"), partial(hang, "read")))
    try:
        async with started(app) as client:
            yield client, app
    finally:
        let_go.set()


@pytest.mark.anyio
@pytest.mark.parametrize(("hangs_in", "change"), [("load", "load"), ("read", "activate")])
async def test_a_load_that_hangs_is_given_up_and_told(tmp_path: Path, hangs_in: str, change: str) -> None:
    let_go = threading.Event()
    async with hanging(tmp_path, hangs_in, let_go) as (client, app):
        assert code(await changed(client, f"second/{change}")) == (504, "load_timeout")
        # Others cannot be loaded beside memory that nobody can count; whoever is asked says so.
        refused = await changed(client, f"second/{change}")
        assert code(refused) == (409, "load_stuck")
        assert "restart" in refused.json()["error"]["message"]
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["stuck_load"]) == (200, "second")
        assert "laplora_abandoned_load 1.0" in (await client.get("/metrics")).text.splitlines()
        # What is loaded answers, and can take the active one's place.
        assert (await client.post("/predict", json={"inputs": [{"text": "a"}]})).status_code == 200
        assert (await changed(client, "third/activate")).json()["previous"] == "first"
        assert (await client.get("/health/ready")).json()["artifact"]["name"] == "third"
        app.state.artifacts.loads._limit_s = GIVE_UP_S  # for a load that does not hang
        let_go.set()
        while (await client.get("/health/ready")).json()["stuck_load"] is not None:
            await asyncio.sleep(0.005)
        assert "laplora_abandoned_load 0.0" in (await client.get("/metrics")).text.splitlines()
        # What came of it was dropped, and the next one is as if it had never been.
        loaded = [a["name"] for a in (await client.get("/artifacts")).json()["artifacts"] if a["loaded"]]
        assert sorted(loaded) == ["first", "third"]
        assert (await changed(client, f"second/{change}")).status_code == 200


class Result:
    pass


def test_the_late_result_is_gone_before_another_load_may_begin_and_a_load_ends_at_its_next_step() -> None:
    told: list[tuple[bool, bool]] = []
    ended, let_go, results = threading.Event(), threading.Event(), list[Any]()

    def load(go_on: Any) -> Result:
        let_go.wait()
        result = Result()
        results.append(weakref.ref(result))
        return result

    def load_in_steps(go_on: Any) -> None:
        let_go.wait()
        go_on()
        results.append(lambda: "went on")

    def on_stuck(stuck: bool) -> None:
        told.append((stuck, any(result() for result in results)))
        if not stuck:
            ended.set()

    for given_up in (load, load_in_steps):
        loads = BoundedLoads(0.01, on_stuck)
        let_go.clear()
        ended.clear()
        with pytest.raises(LoadTimeoutError):
            loads.run("slow", given_up)
        with pytest.raises(LoadStuckError, match="slow"):
            loads.run("other", load)
        assert loads.stuck == "slow"
        loads._limit_s = GIVE_UP_S
        let_go.set()
        ended.wait()
        assert told == [(True, False), (False, False)]
        told.clear()
    assert len(results) == 1, "the second never came to its next step"
    assert isinstance(loads.run("slow", load), Result)
