"""How many requests are answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from serving import FakePredictor, serve

BODY = {"inputs": [{"text": "a"}]}


@pytest.mark.anyio
async def test_one_post_too_many_is_refused_before_its_body_is_read() -> None:
    predictor = FakePredictor()
    async with serve(predictor, max_requests=2) as served:
        predictor.hold()
        running = [asyncio.create_task(served.predict("a")) for _ in range(2)]
        await served.until(lambda: served.state.engine.open_tickets == 2)
        read: list[bytes] = []

        async def body() -> AsyncIterator[bytes]:
            read.append(b" ")
            yield b" "

        for path in ("/predict", "/evaluate", "/artifacts/fake/activate"):
            refused = await served.client.post(path, content=body())
            assert (refused.status_code, read) == (429, [])
            error = refused.json()["error"]
            assert (error["code"], error["limit"], error["got"]) == ("too_many_requests", 2, 3)
            assert int(refused.headers["retry-after"]) >= 1
        for path in ("/health/live", "/health/ready", "/metrics", "/artifacts", "/docs"):
            assert (await served.client.get(path)).status_code == 200
        predictor.released.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert (await served.predict("a")).status_code == 200
        counts = (await served.client.get("/metrics")).text
    assert 'laplora_rejects_total{reason="too_many_requests"} 3.0' in counts
    assert 'laplora_requests_total{method="POST",route="/predict",status="429"} 1.0' in counts


@pytest.mark.anyio
async def test_refused_and_broken_requests_give_their_places_back() -> None:
    async with serve(max_requests=1) as served:
        for _ in range(3):
            assert (await served.client.post("/predict", json={})).status_code == 422
            assert (await served.client.post("/nowhere")).status_code == 404
        held = served.predictor
        held.hold()
        gone = asyncio.create_task(served.predict("a"))
        await served.until(lambda: served.state.engine.open_tickets == 1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        held.released.set()
        assert (await served.predict("a")).status_code == 200
