"""Calls of /evaluate/jobs on a server in this process, and what they leave there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from serving import FakePredictor, Served, serve
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


async def post(
    served: Served, body: Any, query: Mapping[str, Any] = MappingProxyType({}), **headers: str
) -> httpx.Response:
    """Return the answer to an upload; with 10 resamples unless the query says otherwise."""
    query = {"resamples": 10, **query}
    return await served.client.post("/evaluate/jobs", content=body, headers=JSONL | headers, params=query)


async def submit(served: Served, items: list[dict[str, Any]], **query: Any) -> str:
    """Return the id of a job of these items."""
    response = await post(served, lines(items), query)
    assert response.status_code == 202, response.text
    job_id = str(response.json()["id"])
    assert response.headers["location"] == f"/evaluate/jobs/{job_id}"
    return job_id


async def _json(served: Served, method: str, path: str) -> dict[str, Any]:
    response = await served.client.request(method, f"/evaluate/jobs/{path}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def get(served: Served, job_id: str) -> dict[str, Any]:
    return await _json(served, "GET", job_id)


async def cancel(served: Served, job_id: str) -> dict[str, Any]:
    return await _json(served, "POST", f"{job_id}/cancel")


async def delete(served: Served, job_id: str) -> str:
    return str((await _json(served, "DELETE", job_id))["outcome"])


async def ended(served: Served, job_id: str) -> dict[str, Any]:
    job = held(served, job_id)
    await served.until(lambda: job.finished)
    return await get(served, job_id)


async def paused(served: Served, job_id: str) -> str:
    """Return the code of what a job waits for, once it does."""
    job = held(served, job_id)
    await served.until(lambda: job.paused is not None)
    found = await get(served, job_id)
    assert (found["status"], bool(found["paused"]["message"])) == ("paused", True)
    return str(found["paused"]["code"])


async def answers(served: Served, job_id: str, **query: Any) -> list[dict[str, Any]]:
    """Return the rows of a job that are over, with their answers."""
    response = await served.client.get(f"/evaluate/jobs/{job_id}/results", params=query)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.split("\n")[:-1]]


async def methods(served: Served, items: list[dict[str, Any]], **options: Any) -> Any:
    """Return the metrics that POST /evaluate gives of the items."""
    options = {"resamples": 10, **options}
    response = await served.client.post("/evaluate", json={"inputs": items, "options": options})
    return response.json()["methods"]


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    return error


def held(served: Served, job_id: str) -> Job:
    job: Job = served.state.jobs.job(job_id, None)
    return job


def jobs(served: Served) -> list[str]:
    return [job.id for job in served.state.jobs.jobs_of(None)]


def folder(served: Served) -> Path:
    path: Path = served.state.settings.jobs_dir / "laplora-jobs"
    return path


def uploads(served: Served) -> list[str]:
    return sorted(p.name for pattern in ("*.jsonl", "*.part") for p in folder(served).glob(pattern))


async def stopped_job(
    predictor: FakePredictor, *others: FakePredictor, count: int = 5, **values: Any
) -> tuple[str, Path]:
    """Leave a job, of which nothing has run, on a server that stopped; return its id and the folder of jobs.

    None of its rows are kept once it has ended.
    """
    async with serve(predictor, *others, **values) as served:
        predictor.hold()
        job_id = await submit(served, rows(count), keep_rows="false")
        await served.until(predictor.entered.is_set)
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
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:
        yield Callers(client)
