"""Clients that take no answers: each is closed in time, holds no place meanwhile, and leaves connections to others."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import fake_artifacts, fake_server
from serving import on_uvicorn
from starlette.types import Receive, Scope, Send

from service.http.connections import most_connections

pytestmark = pytest.mark.anyio

#: More than the kernel keeps of it on both sides.
LARGE = b"x" * (16 * 2**20)
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
#: Other addresses of this machine.
OTHER, THIRD = "127.0.0.2", "127.0.0.3"


class LargeAnswers:
    """An application whose answers are large; it counts them, begun and ended."""

    def __init__(self, pieces: int = 1) -> None:
        self.begun = self.ended = 0
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.begun += 1
        size = len(LARGE) * self._pieces
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for left in reversed(range(self._pieces)):
            await send({"type": "http.response.body", "body": LARGE, "more_body": left > 0})
        self.ended += 1


def connected(port: int, address: str = "127.0.0.1") -> socket.socket:
    """Return a connection that will be read little of."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.bind((address, 0))
    client.connect(("127.0.0.1", port))
    return client


async def refusal(port: int, **options: Any) -> tuple[bytes, str]:
    """Return the head and the error's code that a further connection is answered with."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head, json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    ("pieces", "sent", "half_closed"),
    [(2, GET, False), (1, GET, True), (1, GET * 40, False), (1, b"GET / HTTP/1.0\r\n\r\n", False)],
    ids=["in-pieces", "half-closed", "pipelined", "http-1.0"],
)
async def test_a_client_that_takes_no_answer_is_closed(pieces: int, sent: bytes, half_closed: bool) -> None:
    app = LargeAnswers(pieces)
    async with on_uvicorn(app, send_timeout_s=0.2) as (server, port):
        with connected(port) as client:
            client.sendall(sent)
            while not app.begun:
                await asyncio.sleep(0.01)
            if half_closed:
                client.shutdown(socket.SHUT_WR)
            while server.server_state.connections or server.server_state.tasks:
                await asyncio.sleep(0.01)
    assert app.begun == app.ended == 1


async def test_a_slow_client_that_takes_enough_gets_all_of_its_answers_each_begun_once_those_before_are_taken() -> None:
    app = LargeAnswers()
    async with on_uvicorn(app, send_timeout_s=0.5, head_timeout_s=0.25) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(GET * 3)
        for begun in (1, 2, 3):
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            assert app.begun == begun
            left = len(LARGE)
            while left:
                left -= len(await reader.read(min(left, 2**20)))
                await asyncio.sleep(0.01)
        # The connection is as good as ever.
        writer.write(GET)
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert app.begun == 4


@asynccontextmanager
async def four_taken(**values: Any) -> AsyncIterator[int]:
    """Yield the port of a server, of which another address has four connections inside the block."""
    async with on_uvicorn(LargeAnswers(), client_share=0.5, **values) as (server, port):
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(connected(port, OTHER))
            while len(server.server_state.connections) < 4:
                await asyncio.sleep(0.01)
            yield port
        # Those that are gone are counted no longer.
        while server.server_state.connections:
            await asyncio.sleep(0.01)
        transport = httpx.AsyncHTTPTransport(local_address=OTHER)
        async with httpx.AsyncClient(transport=transport, timeout=None) as again:
            assert (await again.get(f"http://127.0.0.1:{port}/")).status_code == 200


async def test_one_address_has_its_share_of_the_connections_and_another_still_gets_in() -> None:
    async with four_taken(max_connections=8) as port:
        head, code = await refusal(port, local_addr=(OTHER, 0))
        assert (head[:13], code) == (b"HTTP/1.1 429 ", "client_too_many_requests")
        assert b"retry-after: " in head
        async with httpx.AsyncClient(timeout=None) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200


async def test_a_trusted_proxy_may_have_every_connection_and_no_more() -> None:
    async with four_taken(max_connections=4, trusted_proxies="127.0.0.0/24") as port:
        assert (await refusal(port))[1] == "too_many_requests"


def test_connections_leave_files_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: (100, 200)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    for wanted, most, soft in ((20, 20, 100), (2048, 136, 200)):
        assert (most_connections(wanted), limits[resource.RLIMIT_NOFILE]) == (most, (soft, 200))


def test_clients_that_take_nothing_keep_nobody_from_the_server(tmp_path: Path) -> None:
    flags = ["--max-connections", "64", "--max-requests", "8"]
    inputs = {"inputs": [{"text": "7 a"}] * 256, "options": {"covariance": True}}
    body = json.dumps(inputs).encode()
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    with fake_server(fake_artifacts(tmp_path), *flags) as process, process.client() as client, ExitStack() as stack:
        port = client.base_url.port
        assert port is not None
        unread = [stack.enter_context(connected(port, address)) for address in (OTHER, THIRD) for _ in range(16)]
        # The kernel keeps the first answers: with more of them no client's requests all come to their end.
        left = {connection: request * 40 for connection in unread}
        for connection in unread:
            connection.setblocking(False)
        quiet = 0
        while quiet < 20:
            quiet += 1
            for connection, rest in left.items():
                try:
                    sent = connection.send(rest[:65536])
                except (BlockingIOError, ConnectionError):
                    continue
                if sent:
                    quiet, left[connection] = 0, rest[sent:]
            assert client.get("/health/live").status_code == 200
        # Their first requests have places while they are answered, and no longer.
        while "laplora_requests_in_flight 1.0" not in client.get("/metrics").text.splitlines():
            assert process.popen.poll() is None
        answers = [client.post("/predict", json={"inputs": [{"text": "7"}]}) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert len(os.listdir(f"/proc/{process.popen.pid}/fd")) < 128
