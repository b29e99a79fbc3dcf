"""Twice what a server can answer, sent without waiting for answers: the one protocol by which it is judged.

Each run finds the capacity first, by clients that wait for their answers, and then sends twice that at random times
(Poisson). A latency counts from the time that a request was meant for. The verdict goes by the medians of the runs:

- the answers per second ("goodput") are 0.9 of the capacity or more;
- the 99th percentile of the answered is at most 1.5 times the time to empty a full queue, its rows over the capacity;
- the 95th percentile of the refusals is 10 ms or less, from sending to answer;
- in every run each refusal says when to come again, who comes again then is let in, and nothing is answered otherwise.

There are two settings: clients and server share all cores, or the clients have a core of their own and the server the
others.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.process import on_cores
from benchmarks.load.known_rows import TEXTS
from benchmarks.load.open_arrivals import (
    CALLERS,
    Callers,
    Outcome,
    after_their_wait,
    closed_loop,
    open_loop,
    poisson_times,
)
from benchmarks.load.tally import quantile
from training.report.markdown import markdown_table

#: Times the capacity.
OVERLOAD = 2.0
#: Loads that the first run of a setting is asked too, for comparison.
LIGHTER = (0.5, 1.0)
CLOSED_LOOP_CLIENTS = 64
#: Most of the last refused requests that are sent again.
SENT_AGAIN = 20
GOODPUT, EMPTYING, REFUSAL_MS = 0.9, 1.5, 10.0


@dataclass(frozen=True)
class Plan:
    """Runs of each setting, and seconds of finding the capacity, of twice that, and of each lighter load."""

    runs: int = 3
    capacity_s: float = 15.0
    load_s: float = 40.0
    lighter_s: float = 15.0


QUICK = Plan(runs=1, capacity_s=3.0, load_s=4.0, lighter_s=2.0)


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
    """What came of one load; seconds unless the name says otherwise.

    Attributes:
        load: times the capacity.
        offered_per_s, answered_per_s: requests; answers to the last one.
        latencies: of the answered, 50th, 95th and 99th percentile, from the time a request was meant for.
        refused: how many; ``refusals_ms``: the same percentiles of theirs, from sending to answer.
        retry_after: least, median and most that they said; ``told`` how many said it.
        sent_late_ms: 99th percentile of how late the clients were themselves.
        otherwise: how many were neither answered nor refused for want of room.
    """

    load: float
    offered_per_s: float
    answered_per_s: float
    latencies: tuple[float, float, float]
    refused: int
    refusals_ms: tuple[float, float, float]
    retry_after: tuple[float, float, float]
    told: int
    sent_late_ms: float
    otherwise: int


@dataclass(frozen=True)
class Run:
    """One run: the capacity, lighter loads and twice it; refused requests sent again, and how many were let in then."""

    capacity_per_s: float
    lighter: tuple[Load, ...]
    twice: Load
    again: int
    let_in: int

    @property
    def goodput(self) -> float:
        """Answers at twice the capacity, over the capacity."""
        return self.twice.answered_per_s / self.capacity_per_s

    def emptying(self, queue_rows: int) -> float:
        """Return the 99th percentile of the answered over the time to empty a full queue."""
        return self.twice.latencies[2] / (queue_rows / self.capacity_per_s)

    @property
    def disorder(self) -> int:
        """How many requests were answered otherwise, refused without a time, or refused again after it."""
        twice = self.twice
        return twice.otherwise + twice.refused - twice.told + self.again - self.let_in


def summary(load: float, seconds: float, outcomes: Sequence[Outcome]) -> Load:
    """Return what came of a load that was offered for so long."""
    answered = [one for one in outcomes if one.status == 200]
    refused = [one for one in outcomes if one.status == 429]
    waits = [one.retry_after_s for one in refused if one.retry_after_s is not None]
    last = max((one.done for one in answered), default=0.0)
    return Load(
        load=load,
        offered_per_s=len(outcomes) / seconds,
        answered_per_s=len(answered) / max(seconds, last),
        latencies=_percentiles([one.latency_s for one in answered]),
        refused=len(refused),
        refusals_ms=_percentiles([1000 * (one.done - one.sent) for one in refused]),
        retry_after=(min(waits), statistics.median(waits), max(waits)) if waits else (0.0, 0.0, 0.0),
        told=len(waits),
        sent_late_ms=_percentiles([1000 * (one.sent - one.meant) for one in outcomes])[2],
        otherwise=len(outcomes) - len(answered) - len(refused),
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    values = values or [0.0]
    return quantile(values, 0.5), quantile(values, 0.95), quantile(values, 0.99)


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

    async def offered(load: float, seconds: float) -> tuple[Load, list[Outcome]]:
        print(f"capacity {capacity:.1f} answers a second; now {load:g} times that for {seconds:g} s", flush=True)
        times = poisson_times(load * capacity, seconds, seed=number)
        outcomes = await open_loop(callers, bodies, times)
        return summary(load, seconds, outcomes), outcomes

    lighter = [(await offered(load, plan.lighter_s))[0] for load in LIGHTER] if number == 0 else []
    twice, outcomes = await offered(OVERLOAD, plan.load_s)
    refused = [one for one in outcomes if one.status == 429][-SENT_AGAIN:]
    again = await after_their_wait(callers, bodies, refused)
    return Run(capacity, tuple(lighter), twice, len(again), sum(one.status == 200 for one in again))


def verdicts(runs: Sequence[Run], queue_rows: int) -> list[tuple[str, bool]]:
    """Return what is asked at twice the capacity, in words with the figures, and whether it is so."""
    idle = sum(not run.twice.refused for run in runs)
    goodput = statistics.median(run.goodput for run in runs)
    emptying = statistics.median(run.emptying(queue_rows) for run in runs)
    refusal = statistics.median(run.twice.refusals_ms[1] for run in runs)
    refused = sum(run.twice.refused for run in runs)
    again, let_in = sum(run.again for run in runs), sum(run.let_in for run in runs)
    return [
        (f"answers are {goodput:.2f} of the capacity, at least {GOODPUT:g}", goodput >= GOODPUT),
        (
            f"99 % of the answered wait at most {emptying:.2f} times as long as a full queue takes, "
            f"at most {EMPTYING:g} times",
            emptying <= EMPTYING,
        ),
        (
            f"nothing was refused in {idle} of {len(runs)} runs: the queue never filled, which decides nothing"
            if idle
            else f"95 % of the refusals take at most {refusal:.1f} ms, at most {REFUSAL_MS:g}",
            refusal <= REFUSAL_MS and not idle,
        ),
        (
            f"{sum(run.twice.told for run in runs)} of {refused} refusals say when to come again, {let_in} of {again} "
            f"are let in then, {sum(run.twice.otherwise for run in runs)} are answered otherwise",
            not any(run.disorder for run in runs),
        ),
    ]


def page(by_setting: Mapping[str, Sequence[Run]], measured: str, *, queue_rows: int, predictive: str) -> str:
    """Return the page of the runs of all settings; ``measured``: when, from what and on what."""
    every = [kept for runs in by_setting.values() for _, kept in verdicts(runs, queue_rows)]
    head = f"""# The server past its capacity

{measured}

Requests of one row by {CALLERS} callers, predictive {predictive}; {queue_rows} rows may wait. Capacity by
{CLOSED_LOOP_CLIENTS} clients that wait for their answers, found anew before each run; Poisson arrivals at
twice that, latency from the time a request was meant for. benchmarks/load/overload.py has the protocol.

**Met: {sum(every)} of {len(every)}** targets, by the medians of the runs."""
    lines = [head]
    for name, runs in by_setting.items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        alone = [verdicts([run], queue_rows) for run in runs]
        for i, (what, kept) in enumerate(verdicts(runs, queue_rows)):
            count = sum(verdict[i][1] for verdict in alone)
            lines.append(f"- {'met' if kept else '**missed**'} (met in {count} of {len(runs)} runs): {what}")
        lines += ["", _table(runs, queue_rows).rstrip()]
    return "\n".join(lines) + "\n"


def _table(runs: Sequence[Run], queue_rows: int) -> str:
    rows = [_cells(n, run, load, queue_rows) for n, run in enumerate(runs, 1) for load in (*run.lighter, run.twice)]
    return markdown_table(rows[0], [row.values() for row in rows])


def _cells(number: int, run: Run, load: Load, queue_rows: int) -> dict[str, str]:
    capacity, (least, median, most) = run.capacity_per_s, load.retry_after
    return {
        "run, load": f"{number}, {load.load:g}",
        "capacity /s": f"{capacity:.1f}",
        "offered /s": f"{load.offered_per_s:.1f}",
        "answered /s": f"{load.answered_per_s:.1f}",
        "of capacity": f"{load.answered_per_s / capacity:.2f}",
        "p50, p95, p99 s": ", ".join(f"{v:.2f}" for v in load.latencies),
        "p99 to emptying": f"{load.latencies[2] / (queue_rows / capacity):.2f}",
        "refused": f"{load.refused}",
        "refusal p50, p95, p99 ms": ", ".join(f"{v:.1f}" for v in load.refusals_ms) if load.refused else "",
        "Retry-After s": f"{median:g} ({least:g} to {most:g})" if load.told else "",
        "sent late, p99 ms": f"{load.sent_late_ms:.0f}",
    }
