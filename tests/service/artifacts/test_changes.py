"""Changes of artifacts that outlast their requests: told at once, asked for by their status, begun once."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import artifacts_in, code, library, settings, started

from laplora.errors import ModelError
from service.app import create_app

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("database", [True, False])
async def test_a_change_is_answered_at_once_told_to_its_end_and_begun_once(tmp_path: Path, database: bool) -> None:
    root, let_go, loads = tmp_path / "artifacts", threading.Event(), list[str]()
    root.mkdir()
    predictors = artifacts_in(root, "first", "second", "third")
    predictors[2].golden_error = ModelError("no lora")
    known = library(*predictors)

    def load(path: Path, *more: Any) -> Any:
        loads.append(path.name)
        assert path.name == "first" or let_go.wait(60)
        return known.load(path, *more)

    jobs_dir = tmp_path / "jobs"
    if not database:
        jobs_dir.touch()  # no folder: jobs are not available, and a change is in memory alone
    values: dict[str, Any] = {"artifact": "first", "artifacts_root": root, "jobs_dir": jobs_dir, "max_jobs": 2}
    async with started(create_app(settings(**values), library=replace(known, load=load))) as client:

        async def ask(change: str, key: str | None = None) -> Any:
            headers = {} if key is None else {"idempotency-key": key}
            return await client.post(f"/artifacts/{change}", headers=headers)

        asked, again = await asyncio.gather(ask("second/activate", "k"), ask("second/activate", "k"))
        change, where = asked.json(), asked.headers["location"]
        assert (asked.status_code, again.status_code, again.json()["id"]) == (202, 202, change["id"])
        assert where == f"/changes/{change['id']}"
        running = {"kind": "activate", "artifact": "second", "status": "running", "error": None, "result": None}
        running |= {"finished_at": None}
        now = (await client.get(where)).json()
        assert {name: now[name] for name in running} == running
        assert (await client.get("/changes")).json() == {"changes": [now]}
        # What can be refused at once is, and nothing is kept of it.
        assert code(await ask("third/load")) == (409, "activation_running")
        assert code(await ask("second/load", "k")) == (409, "idempotency_conflict")
        let_go.set()
        while (now := (await client.get(where)).json())["status"] == "running":
            await asyncio.sleep(0.005)
        assert (now["status"], now["result"]["previous"], now["finished_at"] is None) == ("succeeded", "first", False)
        assert (now["result"]["artifact"]["digest"], loads) == ("sha256:second", ["first", "second"])
        assert (await ask("second/activate", "k")).json() == now
        assert code(await ask("nobody/load")) == (404, "artifact_not_found")
        assert len((await client.get("/changes")).json()["changes"]) == 1
        # What comes to light later is its status, and two are kept.
        failing = await ask("third/load", "l")
        while (failed := (await client.get(failing.headers["location"])).json())["status"] != "failed":
            await asyncio.sleep(0.005)
        assert (failing.status_code, failed["result"]) == (202, None)
        assert failed["error"] == {**dict.fromkeys(failed["error"]), "code": "model_unsupported", "message": "no lora"}
        assert (await ask("second/activate", "m")).json()["status"] == "succeeded"
        kept = [one["id"] for one in (await client.get("/changes")).json()["changes"]]
        assert (len(kept), change["id"] in kept, kept[1]) == (2, False, failed["id"])
        gone = await client.get(where)
        assert code(gone) == ((404, "change_not_found") if database else (503, "jobs_unavailable"))
