"""Clients of every kind, side by side until they are stopped: good ones, hostile ones, and those that go away."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.load.known_rows import Known
from benchmarks.load.tally import Tally

#: Refusals that any request may meet at a busy server, and that a client answers by waiting.
BUSY = (429, 503)
JSON = {"content-type": "application/json"}
#: Hostile requests: method, path, body, headers, and the statuses that are right.
HOSTILE: tuple[tuple[str, str, bytes, dict[str, str], tuple[int, ...]], ...] = (
    ("POST", "/predict", b"", JSON, (422,)),
    ("POST", "/predict", b'{"inputs": [{"text": NaN}]}', JSON, (422,)),
    ("POST", "/predict", b'{"inputs": [{"text": "a \\ud800"}]}', JSON, (422,)),
    ("POST", "/predict", b"[" * 100_000, JSON, (422,)),
    ("POST", "/predict", b'{"inputs": [{"text": "a", "txet": 1}]}', JSON, (422,)),
    ("POST", "/predict", b'{"inputs": [{"text": "' + b"very " * 20_000 + b'"}]}', JSON, (422,)),
    ("POST", "/predict", b'{"inputs": [{"text": "\\u0000"}]}', JSON, (200, 422)),
    ("POST", "/predict", b'{"inputs": [' + b'{"text": "a"},' * 2000 + b'{"text": "a"}]}', JSON, (413, 422)),
    ("POST", "/predict", b" " * 5_000_000, JSON, (413,)),
    ("POST", "/predict", b'{"inputs": [{"text": "a"}]}', {"content-type": "text/plain"}, (415,)),
    ("POST", "/evaluate", b'{"inputs": [{"text": "a", "label": 7}]}', JSON, (422,)),
    ("POST", "/artifacts/..%2f..%2fetc/activate", b"", {}, (404, 405)),
    ("GET", "/predict", b"", {}, (405,)),
    ("GET", "/" + "a" * 5000, b"", {}, (404, 414)),
)


@dataclass
class Session:
    """What the clients share.

    Attributes:
        paths: the server's endpoints, from its OpenAPI document.
        names: artifacts that can be activated in turn.
        stop: set when the clients should come to their end.
    """

    url: str
    known: Known
    tally: Tally
    paths: frozenset[str]
    names: tuple[str, ...]
    stop: asyncio.Event
    headers: dict[str, str]

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=180.0, headers=self.headers)

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)


async def run(session: Session, predictors: int = 6) -> None:
    """Run clients until ``session.stop``."""
    kinds: list[Callable[[Session, random.Random], Awaitable[None]]] = [predict] * predictors
    kinds += [hostile, garbage, vanish, vanish, evaluate]
    kinds += [activate] if len(session.names) > 1 else []
    kinds += [submit_job] if "/evaluate/jobs" in session.paths else []
    await asyncio.gather(*(_again(kind, session, random.Random(i)) for i, kind in enumerate(kinds)))


async def _again(kind: Callable[[Session, random.Random], Awaitable[None]], session: Session, rng: Any) -> None:
    while not session.stop.is_set():
        try:
            await kind(session, rng)
        except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
            session.tally.fault(f"{kind.__name__}: {type(error).__name__}")
            await session.pause(1.0)


def refused(session: Session, response: httpx.Response, kind: str, allowed: tuple[int, ...] = BUSY) -> bool:
    """Return whether a request was refused, and count it; a refusal that is not ``allowed`` is a fault."""
    if response.status_code < 300:
        return False
    code = response.json()["error"]["code"]
    session.tally.errors[f"{response.status_code} {code}"] += 1
    if response.status_code not in allowed:
        session.tally.fault(f"{kind}: {response.status_code} {code}, request {response.headers.get('x-request-id')}")
    return True


async def predict(session: Session, rng: random.Random) -> None:
    """Ask for known rows, compare the answers, and label some of them afterwards."""
    async with session.client() as client:
        while not session.stop.is_set():
            texts, mode = session.known.draw(rng, 6), rng.choice(session.known.modes)
            body = {
                "inputs": [{"text": text} for text in texts],
                "options": {"mode": mode, "covariance": mode != "map"},
            }
            begun = time.perf_counter()
            response = await client.post("/predict", json=body)
            if refused(session, response, "predict"):
                await session.pause(float(response.headers.get("retry-after", 1)))
                continue
            answer = response.json()
            session.tally.predicted(time.perf_counter() - begun, len(texts), session.known.wrong(texts, mode, answer))
            if "/feedback" in session.paths and rng.random() < 0.3:
                await _label(session, client, answer["predictions"])
            await session.pause(rng.expovariate(10))


async def _label(session: Session, client: httpx.AsyncClient, predictions: list[dict[str, Any]]) -> None:
    items = [{"prediction_id": p["prediction_id"], "label": p["label"]} for p in predictions if p.get("prediction_id")]
    if items:
        response = await client.post("/feedback", json={"items": items})
        if not refused(session, response, "feedback"):
            session.tally.done["feedback"] += 1


async def hostile(session: Session, rng: random.Random) -> None:
    """Send what must be refused, and see that it is, as it should be."""
    async with session.client() as client:
        while not session.stop.is_set():
            method, path, body, headers, right = rng.choice(HOSTILE)
            response = await client.request(method, path, content=body, headers=headers)
            session.tally.expected[str(response.status_code)] += 1
            if response.status_code not in (*right, *BUSY):
                session.tally.fault(f"hostile {method} {path[:40]} of {len(body)} bytes: {response.status_code}")
            session.tally.done["hostile"] += 1
            await session.pause(rng.expovariate(4))


async def garbage(session: Session, rng: random.Random) -> None:
    """Send bytes that are no HTTP, or half a request."""
    parts = urlsplit(session.url)
    if parts.scheme != "http":
        await session.pause(3600)
        return
    while not session.stop.is_set():
        _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        writer.write(rng.choice((b"\x00\xff\xfe\r\n\r\n", b"POST /predict HTTP/1.1\r\ncontent-le", rng.randbytes(200))))
        await session.pause(0.2)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        session.tally.done["garbage"] += 1
        await session.pause(rng.expovariate(1))


async def vanish(session: Session, rng: random.Random) -> None:
    """Ask, and go away 50 ms later."""
    while not session.stop.is_set():
        body = {"inputs": [{"text": text} for text in session.known.draw(rng, 16)]}
        async with session.client() as client:
            with suppress(TimeoutError):
                await asyncio.wait_for(client.post("/predict", json=body), 0.05)
        session.tally.done["vanished"] += 1
        await session.pause(rng.expovariate(2))


async def evaluate(session: Session, rng: random.Random) -> None:
    """Evaluate rows labelled with what MAP says of them alone: its accuracy is 1 but for rows at the border."""
    async with session.client() as client:
        while not session.stop.is_set():
            texts = session.known.draw(rng, 8)
            rows = [{"text": text, "label": session.known.labels[text]} for text in texts]
            response = await client.post("/evaluate", json={"inputs": rows, "options": {"resamples": 100}})
            if not refused(session, response, "evaluate"):
                answer = response.json()
                session.tally.done["evaluate"] += 1
                if answer["rows"] != len(rows) or answer["methods"]["map"]["accuracy"] < 1 - _border(session, texts):
                    session.tally.wrong += 1
                    session.tally.fault("evaluate: MAP's accuracy is not what is known of the rows")
            await session.pause(rng.expovariate(0.1))


def _border(session: Session, texts: list[str]) -> float:
    """Return the share of rows that the tolerance could turn to another label."""
    near = [text for text in texts if abs(session.known.answers[text, "map"][0] - 0.5) <= 0.15]
    return len(near) / len(texts) + 1e-9


async def activate(session: Session, rng: random.Random) -> None:
    """Activate the artifacts in turn; they are copies of one, so no answer may change."""
    async with session.client() as client:
        while not session.stop.is_set():
            for name in session.names:
                await session.pause(rng.uniform(15, 45))
                if session.stop.is_set():
                    return
                response = await client.post(f"/artifacts/{name}/activate")
                if not refused(session, response, "activate", (*BUSY, 409)):
                    session.tally.done["activate"] += 1


async def submit_job(session: Session, rng: random.Random) -> None:
    """Upload 64 labelled rows as a job, and follow it to its result."""
    async with session.client() as client:
        while not session.stop.is_set():
            texts = rng.choices(session.known.texts, k=64)
            lines = "".join(json.dumps({"text": t, "label": session.known.labels[t]}) + "\n" for t in texts)
            headers = {"content-type": "application/jsonl"}
            response = await client.post("/evaluate/jobs", content=lines.encode(), headers=headers)
            if not refused(session, response, "job"):
                await _follow(session, client, response.json()["id"], len(texts))
            await session.pause(rng.uniform(20, 60))


async def _follow(session: Session, client: httpx.AsyncClient, job: str, rows: int) -> None:
    while not session.stop.is_set():
        response = await client.get(f"/evaluate/jobs/{job}")
        if refused(session, response, "job"):
            return
        found = response.json()
        if found["status"] == "done":
            session.tally.done["job"] += 1
            if found["result"]["rows"] != rows:
                session.tally.fault("job: rows were lost or doubled")
            await client.delete(f"/evaluate/jobs/{job}")
            return
        if found["status"] in ("failed", "cancelled"):
            session.tally.fault(f"job: {found['status']}")
            return
        await session.pause(1.0)
