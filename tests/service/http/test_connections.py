"""Connections before their request is whole, and whose word on the caller's address counts: uvicorn as we run it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from serving import name_the_caller, on_uvicorn

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
