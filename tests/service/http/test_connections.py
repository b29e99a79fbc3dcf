"""Connections before their request is whole, and whose word on the caller's address counts: uvicorn as we run it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import httpx
import pytest
from serving import Served, name_the_caller, on_uvicorn

from laplora.client import AsyncClient, Retries
from service.settings import Settings

pytestmark = pytest.mark.anyio

#: A head that is never finished: each byte of it is sent on its own.
ENDLESS_HEAD = b"GET / HTTP/1.1\r\nx: "


async def drip(writer: asyncio.StreamWriter, head: bytes) -> None:
    """Send a head byte by byte, and its last byte again and again, until the connection is closed."""
    position = 0
    try:
        while True:
            writer.write(head[position : position + 1])
            await writer.drain()
            position = min(position + 1, len(head) - 1)
            await asyncio.sleep(0.01)
    except ConnectionError:
        return


async def test_slow_heads_are_closed_while_others_are_answered_and_a_slow_body_is_not() -> None:
    async with on_uvicorn(name_the_caller, head_timeout_s=0.3) as (_, port), httpx.AsyncClient(timeout=None) as client:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        drips = [asyncio.create_task(drip(writer, ENDLESS_HEAD)) for _, writer in slow]
        while not all(task.done() for task in drips):
            assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
        for _, writer in slow:
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20\r\n\r\n")
        for _ in range(20):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.03)
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        # The slow head of a later request is closed as well.
        await drip(writer, ENDLESS_HEAD)
        writer.close()


class ReusingProxy:
    """A proxy that has one connection to a server and sends on it whatever comes, until it finds that it has ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.connections = 0

    async def connect(self) -> None:
        self.upstream, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.connections += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await whole(reader):
            self._writer.write(request)
            answer = await whole(self.upstream)
            if not answer:
                answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"
                self.close()
                await self.connect()
            writer.write(answer)
        writer.close()

    def close(self) -> None:
        self._writer.close()

    async def lost(self) -> None:
        while not self.upstream.at_eof():
            await asyncio.sleep(0.005)


async def whole(reader: asyncio.StreamReader) -> bytes:
    """Return a request or an answer, nothing where the connection has ended."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head + await reader.readexactly(int(length or 0))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@asynccontextmanager
async def reusing_proxy(port: int) -> AsyncIterator[tuple[ReusingProxy, str]]:
    proxy = ReusingProxy(port)
    await proxy.connect()
    with closing(proxy):
        async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
            yield proxy, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_proxy_finds_its_connection_as_long_as_is_set_and_the_client_tries_a_502_again(served: Served) -> None:
    assert Settings().keep_alive_s == 75
    async with (
        on_uvicorn(served.app, keep_alive_s=0.05) as (_, short),
        on_uvicorn(served.app) as (_, long),
        reusing_proxy(short) as (losing, loses),
        reusing_proxy(long) as (keeping, keeps),
        httpx.AsyncClient(timeout=None) as http,
        AsyncClient(loses, retries=Retries(tries=2, first_s=0.01)) as client,
    ):
        for address in (loses, keeps):
            assert (await http.get(f"{address}/health/live")).status_code == 200
        await losing.lost()  # Idle for as long, the other connection is open.
        assert (await http.get(f"{loses}/health/live")).status_code == 502
        assert (await http.get(f"{keeps}/health/live")).status_code == 200
        assert (losing.connections, keeping.connections) == (2, 1)
        await http.get(f"{loses}/health/live")
        await losing.lost()
        assert len(await client.predict([{"text": "a"}])) == 1


@pytest.mark.parametrize(("most", "share"), [(2, 1.0), (4, 0.5)])
async def test_an_idle_connection_makes_way_for_a_new_one_and_a_busy_one_does_not(most: int, share: float) -> None:
    async def ask(path: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(path or b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return reader, writer

    async with on_uvicorn(name_the_caller, max_connections=most, client_share=share) as (_, port):
        opened = [await ask(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n")]
        for _ in range(3):
            opened.append(await ask())
            assert (await whole(opened[-1][0])).startswith(b"HTTP/1.1 200")
        # The newest idle one is still open, and makes way for another that keeps its place.
        assert [reader.at_eof() for reader, _ in opened[1:3]] == [True, True]
        opened.append(await ask(b"GET"))
        assert await opened[3][0].read() == b""
        opened.append(await ask())
        assert (await whole(opened[-1][0])).startswith(b"HTTP/1.1 429")
        opened[0][1].write(b"123456789")
        assert (await whole(opened[0][0])).startswith(b"HTTP/1.1 200")
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize(
    ("proxies", "forwarded", "caller"),
    [
        ("", "203.0.113.9", "127.0.0.1"),
        ("10.1.2.3", "203.0.113.9", "127.0.0.1"),
        ("10.0.0.0/8, 127.0.0.0/8", "203.0.113.9", "203.0.113.9"),
        # What the proxy adds is on the right; left of it is what the client claims.
        ("127.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1,10.1.2.3", "198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"),
    ],
)
async def test_forwarded_address_counts_from_trusted_proxies_alone(
    proxies: str, forwarded: str, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # uvicorn's own variable must not open what the setting leaves closed.
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    headers = {"x-forwarded-for": forwarded, "x-forwarded-proto": "https"}
    headers |= dict.fromkeys(("forwarded", "x-real-ip"), "for=198.51.100.7")  # nobody is named by these
    async with (
        on_uvicorn(name_the_caller, trusted_proxies=proxies) as (_, port),
        httpx.AsyncClient(timeout=None) as client,
    ):
        answer = await client.get(f"http://127.0.0.1:{port}/", headers=headers)
    assert answer.json() == {"caller": caller, "scheme": "http" if caller == "127.0.0.1" else "https"}
    assert "server" not in answer.headers
