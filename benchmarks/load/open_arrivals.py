"""Requests that come when they come: at random times, without waiting for answers to earlier ones.

Each request has a time that it is meant for, drawn beforehand, and its latency counts from that time, however late it
was sent: clients that wait for answers slow down with the server (coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

#: Callers with an address each, since the server gives one of them only a part of its queue.
CALLERS = 8


@dataclass(frozen=True)
class Outcome:
    """One request, by the clock of its run, seconds.

    Attributes:
        meant: when it was to be sent; ``sent``, ``done``: when it was, and was answered.
        status: of the answer, 0 where the connection broke.
        retry_after_s: what a refusal said, None where it said nothing.
    """

    meant: float
    sent: float
    done: float
    status: int
    retry_after_s: float | None

    @property
    def latency_s(self) -> float:
        """Seconds from the time it was meant for."""
        return self.done - self.meant


def poisson_times(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Return the arrivals of a Poisson process of this rate in so many seconds, in order."""
    rng, now, times = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(rate_per_s)) < seconds:
        times.append(now)
    return times


class Callers:
    """Clients of a server, each of an address of its own where the server is on the loopback network."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url, self._headers = url, headers
        self._clients: list[aiohttp.ClientSession] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Callers:
        local = urlsplit(self._url).hostname == "127.0.0.1"
        for i in range(CALLERS):
            client = aiohttp.ClientSession(
                self._url,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(300.0),
                connector=aiohttp.TCPConnector(limit=0, local_addr=(f"127.0.0.{2 + i}", 0) if local else None),
            )
            self._clients.append(await self._stack.enter_async_context(client))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ask(self, number: int, body: dict[str, Any], meant: float, begun: float) -> Outcome:
        """Return what became of one request, by the clock that began at ``begun``."""
        sent = time.perf_counter() - begun
        try:
            async with self._clients[number % len(self._clients)].post("/predict", json=body) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return Outcome(meant, sent, time.perf_counter() - begun, 0, None)
        wait = response.headers.get("retry-after")
        done = time.perf_counter() - begun
        return Outcome(meant, sent, done, response.status, None if wait is None else float(wait))


async def closed_loop(callers: Callers, bodies: Sequence[dict[str, Any]], clients: int, seconds: float) -> float:
    """Return answers per second to so many clients that each wait for their answers: the capacity."""
    begun = time.perf_counter()
    answered = 0

    async def one(number: int) -> None:
        nonlocal answered
        position = number
        while time.perf_counter() - begun < seconds:
            outcome = await callers.ask(number, bodies[position % len(bodies)], 0.0, begun)
            if outcome.status == 200:
                answered += 1
            elif outcome.status != 429:
                raise RuntimeError(f"the server answered {outcome.status} at a load that it should take")
            position += clients

    await asyncio.gather(*(one(number) for number in range(clients)))
    return answered / (time.perf_counter() - begun)


async def open_loop(callers: Callers, bodies: Sequence[dict[str, Any]], times: Sequence[float]) -> list[Outcome]:
    """Send a request at each of these times, answered or not; return what became of them, in their order."""
    begun = time.perf_counter()
    tasks = []
    for number, meant in enumerate(times):
        await asyncio.sleep(max(0.0, meant - (time.perf_counter() - begun)))
        tasks.append(asyncio.create_task(callers.ask(number, bodies[number % len(bodies)], meant, begun)))
    return list(await asyncio.gather(*tasks))


async def after_their_wait(
    callers: Callers, bodies: Sequence[dict[str, Any]], refused: Sequence[Outcome]
) -> list[Outcome]:
    """Return what becomes of refused requests when each is sent again once its ``Retry-After`` is over.

    The wait begins now: call it when the load has just ended.
    """
    begun = time.perf_counter()

    async def one(number: int, wait_s: float) -> Outcome:
        await asyncio.sleep(wait_s)
        return await callers.ask(number, bodies[number % len(bodies)], wait_s, begun)

    return list(
        await asyncio.gather(*(one(i, r.retry_after_s) for i, r in enumerate(refused) if r.retry_after_s is not None))
    )
