"""The blocking and the asynchronous client behind one interface, so that one test holds for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isasyncgen
from typing import Any

import httpx
import pytest

from laplora.client import AsyncClient, Client, Retries

Handler = Callable[[httpx.Request], httpx.Response]


class Awaited:
    """``AsyncClient`` with the methods of ``Client``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client, self._runner = AsyncClient(*arguments, **options), asyncio.Runner()

    def __enter__(self) -> Awaited:
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._runner.run(self._client.__aexit__(*error))
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return [one async for one in result] if isasyncgen(result) else await result

        return lambda *arguments, **options: self._runner.run(call(*arguments, **options))


@pytest.fixture(params=[Client, Awaited], ids=["blocking", "asynchronous"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Client]:
    """Return what makes a client of a server's address, or of a function that answers in the server's place."""
    kind = request.param

    def connected(to: str | Handler, **options: Any) -> Any:
        if isinstance(to, str):
            return kind(to, **options)

        async def later(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(0.001)  # as over a network: other tasks run meanwhile
            return to(request)

        transport = httpx.MockTransport(to if kind is Client else later)
        quick = Retries(tries=3, first_s=0.01, longest_s=0.02)
        return kind("http://server", transport=transport, **{"retries": quick, **options})

    return connected
