"""How many requests are answered at once, how many bytes their bodies have, and whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import operations
from serving import code, serve

from service.http.in_flight import SCORED
from service.security.keys_file import Key, digest, write_keys

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


class Body:
    """A body in chunks; ``read`` says how many were asked for."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks, self.read = chunks, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            self.read += 1
            yield chunk


def refusal(response: httpx.Response) -> tuple[Any, ...]:
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]
    return error["code"], error["limit"], error["got"]


async def test_one_post_too_many_is_refused_before_its_body_is_read() -> None:
    async with serve(max_requests=2, client_share=1.0) as served:
        async with served.occupied(requests=2):
            for path in ("/predict", "/evaluate", "/feedback", "/evaluate/jobs", "/nowhere"):
                body = Body(b" ")
                refused = await served.client.post(path, content=body)
                assert refusal(refused) == ("too_many_requests", 2, 3)
                assert body.read == 0
            for path in ("/health/live", "/health/ready", "/metrics", "/artifacts", "/docs"):
                assert (await served.client.get(path)).status_code == 200
            for change in ("load", "activate", "unload"):
                assert (await served.client.post(f"/artifacts/nothing/{change}")).status_code == 404
            # A client that closes its connection after the answer is heard out, so that it reads why.
            body = Body(b"a", b"b")
            refused = await served.client.post("/predict", content=body, headers={**JSON, "connection": "close"})
            assert (refused.status_code, body.read) == (429, 2)
        for _ in range(3):  # what is wrong gives its place back
            assert (await served.client.post("/predict", json={})).status_code == 422
        assert (await served.predict("a")).status_code == 200
        counts = (await served.client.get("/metrics")).text
    assert 'laplora_rejects_total{reason="too_many_requests"} 6.0' in counts
    assert 'laplora_requests_total{method="POST",route="/predict",status="429"} 2.0' in counts


async def test_one_caller_alone_has_all_places_and_another_still_gets_in(tmp_path: Path) -> None:
    """Callers are keys, whatever address they come from."""
    keys = tmp_path / "keys.json"
    write_keys(keys, [Key(id=name, sha256=digest(name), scopes=("predict",)) for name in ("greedy", "other")])
    async with serve(max_requests=8, auth="keys", keys=keys) as served:
        served.predictor.hold()

        def ask(key: str) -> asyncio.Task[httpx.Response]:
            headers = {"authorization": f"Bearer {key}"}
            body = {"inputs": [{"text": "a"}]}
            return asyncio.create_task(served.client.post("/predict", json=body, headers=headers))

        greedy = [ask("greedy") for _ in range(8)]
        await served.until(lambda: served.queued_plans == 8)
        assert refusal(await ask("greedy")) == ("too_many_requests", 8, 9)
        other = ask("other")
        await served.until(lambda: served.queued_plans == 9)
        assert refusal(await ask("greedy")) == ("client_too_many_requests", 4, 9)
        assert {entry.caller for entry in served.state.backend.queue.entries} == {"greedy", "other"}
        served.predictor.released.set()
        assert [answer.status_code for answer in await asyncio.gather(*greedy, other)] == [200] * 9
        assert served.state.requests.total == 0


async def test_the_document_says_429_of_exactly_those_operations_that_need_a_place() -> None:
    """Whatever else an operation would answer to an empty body: with no place left it comes to that, or to this."""
    async with serve(max_requests=1) as served, served.occupied():
        refused, told = set(), set()
        for name, operation in operations(served.app.openapi()).items():
            method, path = name.split()
            if path.endswith(("/results", "/report")):
                continue
            answer = await served.client.request(method, path.format(job_id="none", change_id="none", name="none"))
            if answer.status_code == 429:
                refused.add(name)
            if "too_many_requests" in operation["responses"].get("429", {}).get("description", ""):
                told.add(name)
        condition = "POST /artifacts/{name}/condition"
        others = {
            "POST /evaluate/jobs",
            "POST /feedback",
            condition,
            f"{condition}/undo",
            "POST /artifacts/{name}/shadow",
        }
        assert refused == told == {f"POST {path}" for path in SCORED} | others


async def test_a_full_queue_or_one_that_takes_nothing_refuses_before_the_body_is_read() -> None:
    async with serve(max_queue_rows=1, max_inputs=1, client_share=1.0) as served, served.occupied():
        waiting = asyncio.create_task(served.predict("b"))
        await served.until(lambda: served.state.backend.queue.rows == 1)
        body = Body(b" ")
        for path in ("/predict", "/evaluate"):
            assert refusal(await served.client.post(path, content=body, headers=JSON)) == ("queue_full", 1, 2)
        served.predictor.released.set()
        assert (await waiting).status_code == 200
        served.state.lifecycle.drain()
        assert code(await served.client.post("/predict", content=body, headers=JSON)) == (503, "draining")
        assert body.read == 0


async def test_announced_bytes_are_counted_before_they_are_read_and_until_the_answer() -> None:
    text = b'{"inputs": [{"text": "a"}]}'
    async with serve(max_body_bytes=1024, max_in_flight_bytes=2048, client_share=1.0) as served:
        served.predictor.hold()
        running = asyncio.create_task(served.client.post("/predict", content=text.ljust(1024), headers=JSON))
        await served.until(lambda: served.queued_plans == 1)
        assert "laplora_body_bytes 1024.0" in (await served.client.get("/metrics")).text
        rest = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield text
            await rest.wait()
            yield b" " * (1000 - len(text))

        announced = {**JSON, "content-length": "1000"}
        slow = asyncio.create_task(served.client.post("/predict", content=slowly(), headers=announced))
        await served.until(lambda: served.state.body_bytes.total == 2024)
        body = Body(text)
        announced = {**JSON, "content-length": str(len(text))}
        refused = await served.client.post("/predict", content=body, headers=announced)
        assert refusal(refused) == ("too_many_requests", 2048, 2024 + len(text))
        assert body.read == 0
        # Without an announcement, what comes is counted as it comes.
        body = Body(b" " * 20, text)
        assert refusal(await served.client.post("/predict", content=body, headers=JSON))[1:] == (2048, 2044 + len(text))
        assert body.read == 2
        rest.set()
        served.predictor.released.set()
        assert [answer.status_code for answer in await asyncio.gather(running, slow)] == [200, 200]
        assert served.state.body_bytes.total == 0
    limits = {"max_body_bytes": 1024, "max_in_flight_bytes": 2048, "client_share": 0.5}
    async with serve(**limits) as served, served.occupied(text="a" * 990):
        there = served.state.body_bytes.total
        refused = await served.client.post("/predict", content=text, headers=JSON)
        assert refusal(refused) == ("client_too_many_requests", 1024, there + len(text))
