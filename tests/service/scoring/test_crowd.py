"""A crowd of clients that vanish 50 ms after they asked, at a real process whose device is busy."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from server_process import metric, starting

pytestmark = pytest.mark.anyio

CROWD, WAVES = 500, 4
STEADY = range(2000, 2020)
#: What memory may grow by in the waves after the first, which fills pools and caches: 2 KiB for each client that went.
#: A ticket of the queue that is kept costs 4.5 KiB; measured here: 0.3 KiB.
GROWTH_BYTES = 2 * 2**10 * CROWD * (WAVES - 1)


def metrics(client: httpx.Client, *names: str) -> list[float]:
    return [metric(client, f"laplora_{name}") for name in names]


def waits(client: httpx.Client) -> list[float]:
    """Return requests in flight, this one among them, and rows and tokens in the queue."""
    return metrics(client, "requests_in_flight", "queue_rows", "queue_tokens")


async def vanish(port: int, number: int) -> None:
    """Ask from an address of its own, wait 50 ms and go: every other one with a reset, as a killed process does."""
    body = json.dumps({"inputs": [{"text": f"row {3000 + number}"}, {"text": "and a second row"}]}).encode()
    source = f"127.1.{1 + number // 250}.{1 + number % 250}"
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    await asyncio.sleep(0.05)
    if number % 2:
        writer.transport.abort()
    else:
        writer.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def ask(client: httpx.AsyncClient, token: int) -> int:
    """Return the token that the answer to a row names."""
    response = await client.post("/predict", json={"inputs": [{"text": f"row {token}"}]})
    assert response.status_code == 200, response.text
    return round(response.json()["predictions"][0]["map_probs"]["negative"] * 100_000)


async def wave(client: httpx.Client, gate: Path) -> None:
    """Send the crowd while others wait; check that these are answered and nothing was done for the crowd."""
    counts = "batch_rows_sum", 'rejects_total{reason="client_closed_request"}'
    ran, gone = metrics(client, *counts)
    gate.unlink()
    waiting = gate.with_name("gate.waiting")
    waiting.unlink(missing_ok=True)
    port = urlsplit(str(client.base_url)).port or 0
    async with httpx.AsyncClient(base_url=client.base_url, timeout=None) as asking:
        first = asyncio.create_task(ask(asking, 1999))
        await until(waiting.exists)
        steady = [asyncio.create_task(ask(asking, token)) for token in STEADY]
        await until(lambda: waits(client)[:2] == [2 + len(STEADY), len(STEADY)])
        quiet = waits(client)
        await asyncio.gather(*(vanish(port, number) for number in range(CROWD)))
        await until(lambda: waits(client) == quiet)
        gate.touch()
        assert [await first, *(await asyncio.gather(*steady))] == [1999, *STEADY]
    await until(lambda: waits(client) == [1, 0, 0])
    # The crowd was seen, and not a row of it was run: one row each of those who stayed.
    ran_now, gone_now = metrics(client, *counts)
    assert ran_now == ran + 1 + len(STEADY)
    assert gone_now > gone


async def test_500_clients_that_vanish_leave_nothing_behind(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with starting(tmp_path) as start:
        server = start(FAKE_GATE=str(gate))
        process = psutil.Process(server.popen.pid)
        with server.client() as client:
            open_files = process.num_fds()
            await wave(client, gate)
            # Threads and pools are there from the first requests on.
            threads, resident = process.num_threads(), process.memory_info().rss
            for _ in range(WAVES - 1):
                await wave(client, gate)
            await until(lambda: process.num_fds() == open_files)
            assert process.num_threads() == threads
            assert process.memory_info().rss - resident < GROWTH_BYTES
            server.popen.send_signal(signal.SIGTERM)
            # Plans without an answer.
            assert server.event("draining")["in_flight"] == 0
            assert server.left() == 0
            assert "Traceback" not in server.log
