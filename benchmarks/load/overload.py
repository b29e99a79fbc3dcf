"""Twice what a server can answer, sent without waiting for answers: the one protocol by which it is judged.

Each run finds the capacity first, by clients that wait for their answers, and then sends twice that at random times
(Poisson). A latency counts from the time that a request was meant for. The verdict goes by the medians of the runs:

- the answers per second ("goodput") are 0.9 of the capacity or more;
- the 99th percentile of the answered is at most 1.5 times the time to empty a full queue, its rows over the capacity;
- the 95th percentile of the refusals is 10 ms or less, from sending to answer;
- in every run each refusal says when to come again, who comes again then is let in, and nothing is answered otherwise.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.process import on_cores
from benchmarks.load.known_rows import TEXTS
from benchmarks.load.open_arrivals import (
    Callers,
    Outcome,
    after_their_wait,
    closed_loop,
    open_loop,
    poisson_times,
)
from benchmarks.load.tally import quantile

#: Times the capacity.
OVERLOAD = 2.0
CLOSED_LOOP_CLIENTS = 64
#: Most of the last refused requests that are sent again.
SENT_AGAIN = 20
GOODPUT, EMPTYING, REFUSAL_MS = 0.9, 1.5, 10.0


@dataclass(frozen=True)
class Plan:
    """Runs of each setting, and seconds of finding the capacity and of twice that."""

    runs: int = 3
    capacity_s: float = 15.0
    load_s: float = 40.0


QUICK = Plan(runs=1, capacity_s=3.0, load_s=4.0)


@dataclass(frozen=True)
class Setting:
    """Which cores the server and the clients are held on; None: all."""

    name: str
    server: frozenset[int] | None = None
    clients: frozenset[int] | None = None


def settings() -> list[Setting]:
    """Return the settings that this machine has cores for."""
    cores = sorted(os.sched_getaffinity(0))
    shared = Setting("clients on the server's cores")
    if len(cores) < 2:
        return [shared]
    server, clients = frozenset(cores[:-1]), frozenset(cores[-1:])
    return [shared, Setting(f"clients on a core of their own, the server on {len(server)}", server, clients)]


@dataclass(frozen=True)
class Load:
    """The results of one load.

    Attributes:
        answered_per_s: answers to the last one.
        latency_s: of the answered, 99th percentile, from the time a request was meant for.
        refused: how many; ``refusal_ms``: 95th percentile of theirs, from sending to answer.
        told: how many of them said when to come again.
        otherwise: how many were neither answered nor refused for want of room.
    """

    answered_per_s: float
    latency_s: float
    refused: int
    refusal_ms: float
    told: int
    otherwise: int


@dataclass(frozen=True)
class Run:
    """One run: the capacity and twice it; refused requests sent again, and how many were let in then."""

    capacity_per_s: float
    twice: Load
    again: int
    let_in: int

    @property
    def goodput(self) -> float:
        """Answers at twice the capacity, over the capacity."""
        return self.twice.answered_per_s / self.capacity_per_s

    def emptying(self, queue_rows: int) -> float:
        """Return the 99th percentile of the answered over the time to empty a full queue."""
        return self.twice.latency_s / (queue_rows / self.capacity_per_s)

    @property
    def disorder(self) -> int:
        """How many requests were answered otherwise, refused without a time, or refused again after it."""
        twice = self.twice
        return twice.otherwise + twice.refused - twice.told + self.again - self.let_in


def summary(seconds: float, outcomes: Sequence[Outcome]) -> Load:
    """Return what came of a load that was offered for so long."""
    answered = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status == 429]
    last = max((one.done for one in answered), default=0.0)
    return Load(
        answered_per_s=len(answered) / max(seconds, last),
        latency_s=quantile([one.latency_s for one in answered] or [0.0], 0.99),
        refused=len(refused),
        refusal_ms=quantile([1000 * (one.done - one.sent) for one in refused] or [0.0], 0.95),
        told=sum(one.retry_after_s is not None for one in refused),
        otherwise=len(outcomes) - len(answered) - len(refused),
    )


def measure(url: str, plan: Plan, *, predictive: str, cores: frozenset[int] | None = None) -> list[Run]:
    """Return the runs at a server, by clients on some cores; its key, if any, is in ``LAPLORA_TOKEN``."""
    with on_cores(cores):
        return asyncio.run(_measure(url, plan, predictive, os.environ.get("LAPLORA_TOKEN")))


async def _measure(url: str, plan: Plan, predictive: str, token: str | None) -> list[Run]:
    rng = random.Random(0)
    bodies: list[dict[str, Any]] = [
        {"inputs": [{"text": rng.choice(TEXTS)}], "options": {"predictive": predictive}} for _ in range(512)
    ]
    async with Callers(url, {"authorization": f"Bearer {token}"} if token else {}) as callers:
        await closed_loop(callers, bodies, CLOSED_LOOP_CLIENTS, min(5.0, plan.capacity_s))
        return [await _run(callers, bodies, plan, number) for number in range(plan.runs)]


async def _run(callers: Callers, bodies: Sequence[dict[str, Any]], plan: Plan, number: int) -> Run:
    capacity = await closed_loop(callers, bodies, CLOSED_LOOP_CLIENTS, plan.capacity_s)
    print(f"capacity {capacity:.1f} answers a second; now {OVERLOAD:g} times that for {plan.load_s:g} s", flush=True)
    outcomes = await open_loop(callers, bodies, poisson_times(OVERLOAD * capacity, plan.load_s, seed=number))
    twice = summary(plan.load_s, outcomes)
    refused = [one for one in outcomes if one.status == 429][-SENT_AGAIN:]
    again = await after_their_wait(callers, bodies, refused)
    return Run(capacity, twice, len(again), sum(one.status == 200 for one in again))
