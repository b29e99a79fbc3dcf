"""Packed bodies: requests are bounded by what they unpack to, answers are packed for clients that take them so."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
from job_calls import JSONL
from serving import Served, code, on_uvicorn, serve

pytestmark = pytest.mark.anyio

PACKED = {"content-type": "application/json", "content-encoding": "gzip"}


def body(*texts: str) -> bytes:
    return json.dumps({"inputs": [{"text": text} for text in texts]}).encode()


@asynccontextmanager
async def at_its_port(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        on_uvicorn(served.app) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as client,
    ):
        yield client


async def test_a_packed_request_is_answered_as_a_plain_one(served: Served) -> None:
    sent, post = body(*(f"row {n}" for n in range(200))), served.client.post
    plain = await post("/predict", content=sent, headers={"content-type": "application/json"})
    packed = gzip.compress(sent)

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(packed), 7):
            yield packed[start : start + 7]

    # What repeats itself stays behind in the unpacker once all has come.
    long = gzip.compress(body("a " * 30 + " " * 1_000_000))
    for content in (packed, in_pieces(), long):
        for name in ("gzip", "GZIP", "x-gzip") if content is packed else ("gzip",):
            answer = await post("/predict", content=content, headers=PACKED | {"content-encoding": name})
            assert answer.status_code == 200, answer.text
            if content is not long:
                assert [p["probs"] for p in answer.json()["predictions"]] == [
                    p["probs"] for p in plain.json()["predictions"]
                ]


async def test_a_bomb_is_413_before_it_is_unpacked_and_what_is_no_gzip_is_refused() -> None:
    bomb = gzip.compress(b" " * 4_000_000)
    empty_blocks = gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 3000

    async def unannounced() -> AsyncIterator[bytes]:
        for start in range(0, len(empty_blocks), 1000):
            yield empty_blocks[start : start + 1000]

    assert len(bomb) < 8192
    async with serve(max_body_bytes=8192, max_job_bytes=8192, max_jobs_bytes=32768) as served:
        for path, headers in (("/predict", PACKED), ("/evaluate/jobs", PACKED | JSONL)):
            for content in (bomb, unannounced()):
                refused = await served.client.post(path, content=content, headers=headers)
                assert code(refused) == (413, "body_too_large"), path
                assert 8192 < refused.json()["error"]["got"] <= 8192 + 2**16
            piece = gzip.compress(body("a"))
            for content in (body("a"), piece[:-3], piece + piece, piece[:-8] + b"\0" * 8, b""):
                refused = await served.client.post(path, content=content, headers=headers)
                assert code(refused) == (422, "invalid_request")
                assert refused.json()["error"]["field"] == "content-encoding"
            for name in ("deflate", "br", "gzip, gzip"):
                refused = await served.client.post(path, content=piece, headers=headers | {"content-encoding": name})
                assert code(refused) == (415, "unsupported_media_type")
        assert served.state.body_bytes.total == 0


async def test_what_is_unpacked_counts_among_the_bytes_in_flight(served: Served) -> None:
    counted: list[int] = []
    limit, real = served.state.body_bytes, served.state.body_bytes.add
    limit.add = lambda *of: (real(*of), counted.append(limit.total))
    sent = body("a" + " " * 500_000)
    assert (await served.client.post("/predict", content=gzip.compress(sent), headers=PACKED)).status_code == 200
    assert counted[-1] == len(sent)
    assert max(after - before for before, after in pairwise(counted)) <= 2**16


async def test_answers_are_packed_where_they_are_long() -> None:
    async with serve() as served, at_its_port(served) as client:

        async def ask(accepted: str, count: int = 8) -> httpx.Response:
            headers = {"accept-encoding": accepted, "content-type": "application/json"}
            return await client.post("/predict", content=body(*["a"] * count), headers=headers)

        plain = await ask("identity")
        refused_by = ("deflate", "", "gzip;q=0", "br, GZIP; q=0.000", "identity;q=1, *;q=0")
        for accepted, packed in [("gzip", True), ("br;q=1.0, gzip;q=0.5", True), *((one, False) for one in refused_by)]:
            answer = await ask(accepted)
            assert ("content-encoding" in answer.headers) == packed, accepted
            assert answer.headers["vary"] == "Accept-Encoding"
            assert [p["probs"] for p in answer.json()["predictions"]] == [
                p["probs"] for p in plain.json()["predictions"]
            ]
            length = int(answer.headers["content-length"])
            assert length < len(plain.content) / 2 if packed else length == len(answer.content)
        large = await ask("gzip", 256)  # in pieces, as it is written
        assert (len(large.json()["predictions"]), "content-length" in large.headers) == (256, False)
        for path in ("/openapi.json", "/docs/assets/swagger-ui-bundle.js"):
            assert (await client.get(path)).headers["content-encoding"] == "gzip"
        assert "content-encoding" not in (await client.get("/health/live")).headers
        refused: Any = await client.post("/evaluate", json={"inputs": [{}] * 99})
        assert (refused.status_code, refused.headers["content-encoding"]) == (422, "gzip")
        assert refused.json()["error"]["problems_count"] == 99


async def test_probes_ask_by_get_or_head_and_health_is_readiness(served: Served) -> None:
    async with at_its_port(served) as client:
        for leaving in (False, True):
            assert (await client.get("/health")).json().get("artifact") == (
                await client.get("/health/ready")
            ).json().get("artifact")
            for path in ("/health", "/health/ready", "/health/live"):
                got, head = await client.get(path), await client.head(path)
                assert (head.status_code, head.content) == (got.status_code, b""), path
                assert got.status_code == (503 if leaving and path != "/health/live" else 200)
                assert set((await client.put(path)).headers["allow"].split(", ")) == {"GET", "HEAD"}
            served.state.lifecycle.leave()
