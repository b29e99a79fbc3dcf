"""Clients of a server's address, or of a function that answers in the server's place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from laplora.client import Client, Retries

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def connect() -> Callable[..., Client]:
    """Return what makes a client; each of its methods is one of ``AsyncClient`` that is waited for."""

    def connected(to: str | Handler, **options: object) -> Client:
        if isinstance(to, str):
            return Client(to, **options)  # type: ignore[arg-type]

        async def later(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0.001)  # as over a network: other tasks run meanwhile
            return to(request)

        quick = Retries(tries=3, first_s=0.01, longest_s=0.02)
        given = {"transport": httpx.MockTransport(later), "retries": quick, **options}
        return Client("http://server", **given)  # type: ignore[arg-type]

    return connected
