"""A crowd of clients that vanish 50 ms after they asked, at a real process whose device is busy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from server_process import Process, metric, starting

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts a process's files in /proc"),
]

CROWD, WAVES = 500, 4
STEADY = range(2000, 2020)
#: Requests whose client was gone before the answer.
GONE = 'laplora_rejects_total{reason="client_closed_request"}'
#: What memory may grow by in the waves after the first, which fills pools and caches: 2 KiB for each client that went.
#: A ticket of the queue that is kept costs 4.5 KiB; measured here: 0.3 KiB.
GROWTH_BYTES = 2 * 2**10 * CROWD * (WAVES - 1)


class Busy:
    """A server whose device answers nothing between ``hold`` and ``release``."""

    def __init__(self, process: Process, client: httpx.Client, gate: Path) -> None:
        self.process, self.client, self._gate = process, client, gate
        self.waiting = gate.with_name(f"{gate.name}.waiting")
        self.port = urlsplit(str(client.base_url)).port or 0

    def hold(self) -> None:
        self._gate.unlink()
        self.waiting.unlink(missing_ok=True)

    def release(self) -> None:
        self._gate.touch()

    def metric(self, name: str) -> float:
        return metric(self.client, name)

    def waits(self) -> tuple[float, float, float]:
        """Return requests in flight without this one, and rows and tokens in the queue."""
        in_flight = self.metric("laplora_requests_in_flight") - 1
        return in_flight, self.metric("laplora_queue_rows"), self.metric("laplora_queue_tokens")

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.popen.pid}/fd"))

    @property
    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.popen.pid}/task"))

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.popen.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Busy]:
    gate = tmp_path / "gate"
    gate.touch()
    with starting(tmp_path) as start:
        process = start(FAKE_GATE=str(gate))
        with process.client() as client:
            yield Busy(process, client, gate)


async def vanish(port: int, number: int) -> None:
    """Ask from an address of its own, wait 50 ms and go: every other one with a reset, as a killed process does."""
    body = json.dumps({"inputs": [{"text": f"row {3000 + number}"}, {"text": "and a second row"}]}).encode()
    source = f"127.1.{1 + number // 250}.{1 + number % 250}"
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(
        b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
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


async def wave(busy: Busy) -> None:
    """Send the crowd while others wait, and check that these are answered and nothing was done for the crowd."""
    ran = busy.metric("laplora_batch_rows_sum")
    gone = busy.metric(GONE)
    busy.hold()
    async with httpx.AsyncClient(base_url=busy.client.base_url, timeout=None) as client:
        first = asyncio.create_task(ask(client, 1999))
        await until(busy.waiting.exists)
        steady = [asyncio.create_task(ask(client, token)) for token in STEADY]
        await until(lambda: busy.waits()[:2] == (1 + len(STEADY), len(STEADY)))
        quiet = busy.waits()
        await asyncio.gather(*(vanish(busy.port, number) for number in range(CROWD)))
        await until(lambda: busy.waits() == quiet)
        busy.release()
        assert [await first, *(await asyncio.gather(*steady))] == [1999, *STEADY]
    await until(lambda: busy.waits() == (0, 0, 0))
    # The crowd was seen, and not a row of it was run: one row each of those who stayed.
    assert busy.metric(GONE) > gone
    assert busy.metric("laplora_batch_rows_sum") == ran + 1 + len(STEADY)


async def test_500_clients_that_vanish_leave_nothing_behind(busy: Busy) -> None:
    open_files = busy.open_files
    await wave(busy)
    # Threads and pools are there from the first requests on.
    threads, resident = busy.threads, busy.resident_bytes()
    for _ in range(WAVES - 1):
        await wave(busy)
    await until(lambda: busy.open_files == open_files)
    assert busy.threads == threads
    assert busy.resident_bytes() - resident < GROWTH_BYTES
    busy.process.popen.send_signal(signal.SIGTERM)
    # Plans without an answer.
    assert busy.process.event("draining")["in_flight"] == 0
    assert busy.process.left() == 0
    assert "Traceback" not in busy.process.log
