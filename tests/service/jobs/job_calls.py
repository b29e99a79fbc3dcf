"""Calls of /evaluate/jobs on a server in this process, and what they leave there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import serving
from serving import FakePredictor, Served
from starlette.datastructures import Headers

from service.jobs.store.records import Job
from service.security.callers import Caller

JSONL = {"content-type": "application/jsonl"}


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return labelled inputs; each one's probability of ``negative`` names it."""
    return [
        {"text": f"row {(i * 7919 + 101) % 90_000 + 2}", "label": ("negative", "positive")[i % 3 == 0]}
        for i in range(first, first + count)
    ]


def holding(items: list[dict[str, Any]], numbers: Mapping[int, int]) -> list[dict[str, Any]]:
    """Return items of which those with these numbers, from 0, hold these tokens."""
    held = {number: {"text": f"row {token}", "label": "positive"} for number, token in numbers.items()}
    return [held.get(number, item) for number, item in enumerate(items)]


def poisoned(count: int, *numbers: int) -> list[dict[str, Any]]:
    """Return labelled inputs, of which these, from 0, hold the token 90,500 and their number."""
    return holding(rows(count), {number: 90_500 + number for number in numbers})


def lines(items: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    return error


class ServedJobs(Served):
    """A running application, and calls of its jobs."""

    async def post(self, body: Any, query: Mapping[str, Any] = MappingProxyType({}), **headers: str) -> httpx.Response:
        """Return the answer to an upload; with 10 resamples unless the query says otherwise."""
        query = {"resamples": 10, **query}
        return await self.client.post("/evaluate/jobs", content=body, headers=JSONL | headers, params=query)

    async def submit(self, items: list[dict[str, Any]], **query: Any) -> str:
        """Return the id of a job of these items."""
        response = await self.post(lines(items), query)
        assert response.status_code == 202, response.text
        job_id = str(response.json()["id"])
        assert response.headers["location"] == f"/evaluate/jobs/{job_id}"
        return job_id

    async def _json(self, method: str, path: str) -> dict[str, Any]:
        response = await self.client.request(method, f"/evaluate/jobs/{path}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def get(self, job_id: str) -> dict[str, Any]:
        return await self._json("GET", job_id)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        return await self._json("POST", f"{job_id}/cancel")

    async def delete(self, job_id: str) -> str:
        return str((await self._json("DELETE", job_id))["outcome"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        job = self.held(job_id)
        await self.until(lambda: job.finished)
        return await self.get(job_id)

    async def done(self, items: list[dict[str, Any]], **query: Any) -> str:
        """Return the id of a job of these items that has ended."""
        job_id = await self.submit(items, **query)
        assert (await self.ended(job_id))["status"] == "done"
        return job_id

    async def paused(self, job_id: str) -> str:
        """Return the code of what a job waits for, once it does: where artifacts answer, not for these any more."""
        job = self.held(job_id)
        old = "not_ready" if self.state.artifacts.active else None
        await self.until(lambda: job.paused is not None and job.paused["code"] != old)
        found = await self.get(job_id)
        assert (found["status"], bool(found["paused"]["message"])) == ("paused", True)
        return str(found["paused"]["code"])

    async def answers(self, job_id: str, **query: Any) -> list[dict[str, Any]]:
        response = await self.client.get(f"/evaluate/jobs/{job_id}/results", params=query)
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.split("\n")[:-1]]

    async def methods(self, items: list[dict[str, Any]], **options: Any) -> Any:
        """Return the metrics that POST /evaluate gives of the items."""
        body = {"inputs": items, "options": {"resamples": 10, **options}}
        return (await self.client.post("/evaluate", json=body)).json()["methods"]

    def held(self, job_id: str) -> Job:
        job: Job = self.state.jobs.job(job_id, None)
        return job

    def jobs(self) -> list[str]:
        return [job.id for job in self.state.jobs.jobs_of(None)]

    def folder(self) -> Path:
        path: Path = self.state.settings.jobs_dir / "laplora-jobs"
        return path

    def uploads(self) -> list[str]:
        return sorted(p.name for pattern in ("*.jsonl", "*.part") for p in self.folder().glob(pattern))


@asynccontextmanager
async def serve(*predictors: FakePredictor, **values: Any) -> AsyncIterator[ServedJobs]:
    async with serving.serve(*predictors, **values) as served:
        yield ServedJobs(served.app, served.client, served.predictor)


async def stopped_job(*predictors: FakePredictor, count: int = 5, **values: Any) -> tuple[str, Path]:
    """Leave a job, of which nothing has run, on a server that stopped; return its id and the folder of jobs.

    None of its rows are kept once it has ended.
    """
    async with serve(*predictors, **values) as served:
        served.predictor.hold()
        job_id = await served.submit(rows(count), keep_rows="false")
        await served.until(served.predictor.entered.is_set)
    return job_id, served.state.settings.jobs_dir


class Callers:
    """A client of a server that names who calls, as API keys do."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def call(self, caller: str, method: str, path: str = "", **more: Any) -> httpx.Response:
        headers = JSONL | {"x-caller": caller} | more.pop("headers", {})
        if method == "POST" and not path:
            more["params"] = {"resamples": 10}
        return await self._client.request(method, f"/evaluate/jobs{path}", headers=headers, **more)

    async def json(self, caller: str, method: str, path: str = "", **more: Any) -> Any:
        response = await self.call(caller, method, path, **more)
        assert response.status_code < 300, response.text
        return response.json()


@asynccontextmanager
async def callers(served: Served) -> AsyncIterator[Callers]:
    async def named(scope: Any, receive: Any, send: Any) -> None:
        name = Headers(scope=scope).get("x-caller", "")
        scopes: Any = frozenset({"evaluate", "admin"} if name == "root" else {"evaluate"})
        scope.setdefault("state", {})["caller"] = Caller(name, scopes)
        await served.app(scope, receive, send)

    transport = httpx.ASGITransport(app=named)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as client:
        yield Callers(client)
