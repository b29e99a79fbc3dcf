"""Clients of every kind, side by side until they are stopped: good ones, hostile ones, and those that go away."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from benchmarks.load.known_rows import PREDICTIVES, TOLERANCE, Known
from benchmarks.load.tally import Tally

#: Clients that ask for predictions.
PREDICTORS = 6
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
    """The state that the clients share.

    Attributes:
        names: artifacts that can be activated in turn.
        stop: set when the clients should come to their end.
    """

    url: str
    known: Known
    tally: Tally
    names: tuple[str, ...]
    headers: dict[str, str]
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)


#: Does one thing, and returns how many seconds it pauses until the next.
Kind = Callable[[Session, httpx.AsyncClient, random.Random], Awaitable[float]]


async def run(session: Session) -> None:
    kinds: list[Kind] = [*[predict] * PREDICTORS, hostile, garbage, vanish, vanish, evaluate, submit_job]
    kinds += [activate] if len(session.names) > 1 else []
    await asyncio.gather(*(_again(kind, session, random.Random(i)) for i, kind in enumerate(kinds)))


async def _again(kind: Kind, session: Session, rng: random.Random) -> None:
    async with httpx.AsyncClient(base_url=session.url, timeout=180.0, headers=session.headers) as client:
        while not session.stop.is_set():
            try:
                pause_s = await kind(session, client, rng)
            except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
                session.tally.fault(f"{kind.__name__}: {type(error).__name__}")
                pause_s = 1.0
            await session.pause(pause_s)


def refused(session: Session, response: httpx.Response, kind: str, allowed: tuple[int, ...] = BUSY) -> bool:
    """Return whether a request was refused, and count it; a refusal that is not ``allowed`` is a fault."""
    if response.status_code < 300:
        return False
    code = response.json()["error"]["code"]
    session.tally.errors[f"{response.status_code} {code}"] += 1
    if response.status_code not in allowed:
        session.tally.fault(f"{kind}: {response.status_code} {code}, request {response.headers.get('x-request-id')}")
    return True


async def predict(session: Session, client: httpx.AsyncClient, rng: random.Random) -> float:
    """Ask for known rows, compare the answers, and label some of them afterwards."""
    texts, name = session.known.draw(rng, 6), rng.choice(PREDICTIVES)
    body = {"inputs": [{"text": text} for text in texts], "options": {"predictive": name, "covariance": name != "map"}}
    begun = time.perf_counter()
    response = await client.post("/predict", json=body)
    if refused(session, response, "predict"):
        return float(response.headers.get("retry-after", 1))
    answer = response.json()
    session.tally.predicted(time.perf_counter() - begun, len(texts), session.known.wrong(texts, name, answer))
    if rng.random() < 0.3:
        items = [{"prediction_id": p["prediction_id"], "label": p["label"]} for p in answer["predictions"]]
        response = await client.post("/feedback", json={"items": items})
        if not refused(session, response, "feedback"):
            session.tally.done["feedback"] += 1
    return rng.expovariate(10)


async def hostile(session: Session, client: httpx.AsyncClient, rng: random.Random) -> float:
    """Send what must be refused, and see that it is, as it should be."""
    method, path, body, headers, right = rng.choice(HOSTILE)
    response = await client.request(method, path, content=body, headers=headers)
    session.tally.expected[str(response.status_code)] += 1
    if response.status_code not in (*right, *BUSY):
        session.tally.fault(f"hostile {method} {path[:40]} of {len(body)} bytes: {response.status_code}")
    session.tally.done["hostile"] += 1
    return rng.expovariate(4)


async def garbage(session: Session, client: httpx.AsyncClient, rng: random.Random) -> float:
    """Send bytes that are no HTTP, or half a request."""
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port or 80)
    writer.write(rng.choice((b"\x00\xff\xfe\r\n\r\n", b"POST /predict HTTP/1.1\r\ncontent-le", rng.randbytes(200))))
    await session.pause(0.2)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    session.tally.done["garbage"] += 1
    return rng.expovariate(1)


async def vanish(session: Session, client: httpx.AsyncClient, rng: random.Random) -> float:
    """Ask, and go away 50 ms later."""
    body = {"inputs": [{"text": text} for text in session.known.draw(rng, 16)]}
    with suppress(TimeoutError):
        await asyncio.wait_for(client.post("/predict", json=body), 0.05)
    session.tally.done["vanished"] += 1
    return rng.expovariate(2)


async def evaluate(session: Session, client: httpx.AsyncClient, rng: random.Random) -> float:
    """Evaluate rows labelled with what MAP says of them alone: its accuracy is 1 but for rows at the border."""
    texts = session.known.draw(rng, 8)
    rows = [{"text": text, "label": session.known.labels[text]} for text in texts]
    response = await client.post("/evaluate", json={"inputs": rows, "options": {"resamples": 100}})
    if not refused(session, response, "evaluate"):
        answer = response.json()
        session.tally.done["evaluate"] += 1
        border = sum(abs(session.known.answers[text, "map"][0] - 0.5) <= TOLERANCE for text in texts)
        right = answer["methods"]["map"]["accuracy"] * len(rows)
        if answer["rows"] != len(rows) or right < len(rows) - border - 1e-6:
            session.tally.wrong += 1
            session.tally.fault("evaluate: MAP's accuracy is not what is known of the rows")
    return rng.expovariate(0.1)


async def activate(session: Session, client: httpx.AsyncClient, rng: random.Random) -> float:
    """Activate an artifact; they are copies of one, so no answer may change."""
    response = await client.post(f"/artifacts/{rng.choice(session.names)}/activate")
    while not refused(session, response, "activate", (*BUSY, 409)):
        change = response.json()
        if change["status"] in ("queued", "running"):
            await session.pause(0.1)
            response = await client.get(f"/changes/{change['id']}")
            continue
        session.tally.done["activate"] += 1
        if change["error"] is not None:
            session.tally.fault(f"activate: {change['error']['code']}")
        break
    return rng.uniform(15, 45)


async def submit_job(session: Session, client: httpx.AsyncClient, rng: random.Random) -> float:
    """Upload 64 labelled rows as a job, and follow it to its result."""
    texts = rng.choices(list(session.known.labels), k=64)
    lines = "".join(json.dumps({"text": t, "label": session.known.labels[t]}) + "\n" for t in texts)
    headers = {"content-type": "application/jsonl"}
    response = await client.post("/evaluate/jobs", content=lines.encode(), headers=headers)
    if not refused(session, response, "job"):
        await _follow(session, client, f"/evaluate/jobs/{response.json()['id']}", len(texts))
    return rng.uniform(20, 60)


async def _follow(session: Session, client: httpx.AsyncClient, path: str, rows: int) -> None:
    while not session.stop.is_set():
        response = await client.get(path)
        if refused(session, response, "job"):
            return
        job = response.json()
        if job["status"] == "done":
            session.tally.done["job"] += 1
            if job["result"]["rows"] != rows:
                session.tally.fault("job: rows were lost or doubled")
            await client.delete(path)
            return
        if job["status"] in ("failed", "cancelled"):
            session.tally.fault(f"job: {job['status']}")
            return
        await session.pause(1.0)
