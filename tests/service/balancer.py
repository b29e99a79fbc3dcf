"""A load balancer as plain as can be: forwards each request to a server whose readiness it saw to be good last."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

#: Seconds between two looks at readiness, as a Kubernetes probe would have them in whole seconds.
LOOK_EVERY_S = 1.0


@dataclass
class Balancer:
    """Knows servers by address, and sends each request to the next one that was ready at the last look.

    Connections are kept between requests, so that one that a server is about to close is used if nobody says so.
    """

    addresses: list[str]
    client: httpx.AsyncClient
    ready: list[str] = field(default_factory=list)
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    async def post(self, path: str, body: dict[str, object]) -> tuple[str, int | str]:
        """Return which server was asked, and its status, or the name of a broken connection's error. Never retries."""
        address = self.ready[next(self._turn) % len(self.ready)]
        try:
            return address, (await self.client.post(f"{address}{path}", json=body)).status_code
        except httpx.TransportError as error:
            return address, type(error).__name__

    async def look(self) -> None:
        """See who is ready."""
        self.ready = [address for address in self.addresses if await self._is_ready(address)]

    async def _is_ready(self, address: str) -> bool:
        try:
            return (await self.client.get(f"{address}/health/ready")).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def balancer(*addresses: str) -> AsyncIterator[Balancer]:
    """Yield a balancer of these servers that looks at their readiness all the while."""
    async with httpx.AsyncClient(timeout=None) as client:
        own = Balancer(list(addresses), client)
        await own.look()

        async def watch() -> None:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                await own.look()

        watching = asyncio.create_task(watch())
        try:
            yield own
        finally:
            watching.cancel()
