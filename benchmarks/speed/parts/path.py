"""The cost of a request beside the model's: a server whose device only sleeps, against a bare FastAPI endpoint."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import httpx

from benchmarks.harness.process import on_cores, served
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.timing import exactly, spread
from benchmarks.load.known_rows import TEXTS
from benchmarks.load.open_arrivals import Callers, closed_loop, open_loop, poisson_times
from benchmarks.load.tally import quantile
from benchmarks.load.watch import process_at

FLAGS = ("--batch-tokens", "16384", "--feedback-rows", "1000")  # few are kept, so that memory is soon full
#: Clients, rows of a request, and answered rows between two looks at memory.
CLIENTS, ROWS, MANY = 32, (1, 32), 200_000


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield rows a second over the endpoint's, the event loop's stalls at half of that, and what memory grew by."""
    (*cores, mine), seconds = sorted(os.sched_getaffinity(0)), 1.0 if quick else 3.0
    both = (served(flags, cores=cores or [mine], module="benchmarks.load.no_model") for flags in (["bare"], FLAGS))
    with next(both) as bare, next(both) as server, on_cores([mine]):
        for rows in ROWS:
            pairs = [[rates(url, rows, seconds) for url in (bare, server)] for _ in range(4)][1:]
            name = f"path: rows a second of the processor, {rows} a request"
            ratios = spread([ours / theirs for (_, theirs), (_, ours) in pairs])
            yield conditions.record(name, ratios, "a bare endpoint", limit=0.7, side="at least")
            rate = min(ours for _, (ours, _) in pairs)
            httpx.get(f"{server}/stalls")
            asyncio.run(load(server, rows, 2 * seconds, rate / 2))
            late = [1000 * one for one in httpx.get(f"{server}/stalls").json()]
            name = f"path: event loop's stall at half the rate, {rows} a request"
            yield conditions.record(f"{name}, 99th percentile", exactly(quantile(late, 0.99)), "ms", limit=20.0)
            yield conditions.record(f"{name}, longest", exactly(max(late)), "ms")
        memory = process_at(server).memory_info  # type: ignore[union-attr]
        before = memory().rss
        asyncio.run(load(server, rows, MANY / (rows * rate)))
        grown = exactly((memory().rss - before) / 1e6)
        yield conditions.record(f"path: growth of the process's memory in about {MANY:,} rows", grown, "MB")


def rates(url: str, rows: int, seconds: float) -> tuple[float, float]:
    """Return the answers to waiting clients a second, and a second that the server's process had of a processor.

    Only the second does not depend on what else the machine runs, the clients among it.
    """
    times = process_at(url).cpu_times  # type: ignore[union-attr]
    before = sum(times()[:2])
    answers = asyncio.run(load(url, rows, seconds))
    return answers, answers * seconds / (sum(times()[:2]) - before)


async def load(url: str, rows: int, seconds: float, rate: float | None = None) -> float:
    """Return the answers a second to clients that wait for theirs; or to requests at random times, so many a second."""
    bodies = [{"inputs": [{"text": TEXTS[(i + j) % len(TEXTS)]} for j in range(rows)]} for i in range(len(TEXTS))]
    async with Callers(url, {}) as callers:
        if rate is None:
            return await closed_loop(callers, bodies, CLIENTS, seconds)
        return len(await open_loop(callers, bodies, poisson_times(rate, seconds, seed=0))) / seconds
