"""The simulation beside a real server: one core, clients on another, half, all and twice of what the server can answer.

The costs that the simulation is fed with are measured in the same minutes: the device's in this process, on the
server's core; the host's at the server itself, as the processor time of all its threads but the device's.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from benchmarks.harness.process import on_cores, served
from benchmarks.harness.provenance import ARTIFACT
from benchmarks.load.known_rows import TEXTS
from benchmarks.load.open_arrivals import CALLERS, Callers, Outcome, closed_loop, open_loop, poisson_times
from benchmarks.load.tally import quantile
from benchmarks.scaling.costs import DeviceCost, HostCost, device_points, fit_line
from benchmarks.scaling.simulation import Arrival, Cluster, simulate, simulate_clients
from laplora.predictor import Predictor

LOADS = (0.5, 1.0, 2.0)
#: Each load comes with other arrivals each time.
SEEDS = (0, 1, 2)
#: Times the capacity, and seconds of it, that fill the queue at once: most requests are refused, and what that costs is
#: seen. None of the loads that are compared.
FLOOD, FLOOD_S = 60.0, 3.0
CLIENTS = 64
#: Rows of a request where what a further row costs the host is measured.
ROWS = 16
#: Rows that may wait: few enough that twice the capacity fills the queue in seconds.
QUEUE_ROWS, TOKEN_BUDGET = 256, 512
FLAGS = ("--max-queue-rows", str(QUEUE_ROWS), "--max-inputs", "32", "--batch-tokens", str(TOKEN_BUDGET))


@dataclass(frozen=True)
class Seen:
    """What came of one load, at the server or in the simulation.

    Attributes:
        load: times the capacity; ``seed``: of the arrivals; ``offered_per_s``, ``answered_per_s``: requests.
        latencies_s: of the answered, 50th, 95th and 99th percentile; ``refused``: share of all that came, for want of
            room; ``otherwise``: how many were neither answered nor refused so.
    """

    load: float
    seed: int
    offered_per_s: float
    answered_per_s: float
    latencies_s: tuple[float, float, float]
    refused: float
    otherwise: int = 0


def measure(*, mode: str, seconds: float, turns: int) -> dict[str, Any]:
    """Return costs, and what came of each load at the server and in the simulation.

    Args:
        mode: of the requests, ``map`` or ``laplace``.
        seconds: of each load; ``turns``: in which batches are timed.

    Raises:
        RuntimeError: this machine has one core alone.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("server and clients need a core each")
    server, clients = cores[:1], cores[-1:]
    with on_cores(server):
        device, tokens = _device_cost(mode, turns)
    bodies: list[dict[str, Any]] = [{"inputs": [{"text": text}], "options": {"predictive": mode}} for text in _texts()]
    with served(FLAGS, cores=server) as url:
        process = psutil.Process().children()[-1]
        with on_cores(clients):
            capacity, host, real = asyncio.run(_real(url, bodies, process, seconds))
    cluster = Cluster(device, host, shared_core=True, token_budget=TOKEN_BUDGET, queue_rows=QUEUE_ROWS)
    by_text = [tokens[text] for text in _texts()]
    asking = [(f"caller {k % CALLERS}", by_text[k % len(by_text) :: CLIENTS] or by_text) for k in range(CLIENTS)]
    return {
        "mode": mode,
        "device": asdict(device),
        "host": asdict(host),
        "capacity_per_s": {"server": capacity, "simulation": simulate_clients(cluster, asking, seconds)},
        "server": [asdict(seen) for seen in real],
        # The same times as at the server, so that chance is the same: what differs is the simulation's own.
        "simulation": [
            asdict(_simulated(cluster, load, seed, capacity, seconds, by_text)) for load in LOADS for seed in SEEDS
        ],
    }


def _texts() -> list[str]:
    rng = random.Random(0)
    return [rng.choice(TEXTS) for _ in range(512)]


def _device_cost(mode: str, turns: int) -> tuple[DeviceCost, dict[str, int]]:
    """Return what a batch costs on this thread's core, and the tokens of each text's prompt."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predictor = Predictor.load(ARTIFACT)
        rows = {text: predictor.encode({"text": text}, truncate=False) for text in TEXTS}
        longest = max(rows.values(), key=lambda row: len(row.token_ids))

        def run(count: int, tokens: int) -> object:
            ids = tuple(longest.token_ids)
            row = replace(longest, token_ids=(ids[:1] + ids[1:] * (1 + tokens // len(ids)))[:tokens])
            return predictor.predict([row] * count, mode)

        device = fit_line(device_points(run, turns=turns))
    finally:
        torch.set_num_threads(threads)
    return device, {text: predictor.device_tokens(row) for text, row in rows.items()}


async def _real(
    url: str, bodies: Sequence[dict[str, Any]], process: psutil.Process, seconds: float
) -> tuple[float, HostCost, list[Seen]]:
    async with Callers(url, {}) as callers:
        await closed_loop(callers, bodies, CLIENTS, min(5.0, seconds))
        capacity, request_s = await _at_capacity(callers, bodies, CLIENTS, process, seconds)
        _, of_many_s = await _at_capacity(callers, [_many(bodies)], CALLERS, process, seconds)
        refusal_s = await _refusal_s(callers, bodies, process, capacity, request_s)
        seen = [
            _seen(load, seed, seconds, await _open(callers, bodies, load, seed, capacity, seconds))
            for load in LOADS
            for seed in SEEDS
        ]
    return capacity, HostCost(request_s, max(0.0, of_many_s - request_s) / (ROWS - 1), refusal_s), seen


async def _at_capacity(
    callers: Callers, bodies: Sequence[dict[str, Any]], clients: int, process: psutil.Process, seconds: float
) -> tuple[float, float]:
    """Return the answers a second to clients that wait for theirs, and the host's seconds for one."""
    before, begun = _host_s(process), time.perf_counter()
    per_s = await closed_loop(callers, bodies, clients, seconds)
    return per_s, (_host_s(process) - before) / (per_s * (time.perf_counter() - begun))


async def _refusal_s(
    callers: Callers, bodies: Sequence[dict[str, Any]], process: psutil.Process, capacity: float, request_s: float
) -> float:
    """Return the host's seconds for a request that finds no room."""
    before = _host_s(process)
    outcomes = await open_loop(callers, bodies, poisson_times(FLOOD * capacity, FLOOD_S, seed=0))
    answered, refused = (sum(one.status == status for one in outcomes) for status in (200, 429))
    return max(0.0, _host_s(process) - before - answered * request_s) / refused


async def _open(
    callers: Callers, bodies: Sequence[dict[str, Any]], load: float, seed: int, capacity: float, seconds: float
) -> list[Outcome]:
    return await open_loop(callers, bodies, poisson_times(load * capacity, seconds, seed))


def _many(bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**bodies[0], "inputs": [body["inputs"][0] for body in bodies[:ROWS]]}


def _host_s(process: psutil.Process) -> float:
    """Return the processor seconds of all of a server's threads but the busiest, which is the device's."""
    of_threads = sorted(thread.user_time + thread.system_time for thread in process.threads())
    return float(sum(of_threads[:-1]))


def _seen(load: float, seed: int, seconds: float, outcomes: Sequence[Outcome]) -> Seen:
    answered = [(one.done, one.latency_s) for one in outcomes if one.status == 200]
    refused = sum(one.status == 429 for one in outcomes)
    return _summary(load, seed, seconds, answered, refused, len(outcomes))


def _simulated(
    cluster: Cluster, load: float, seed: int, capacity: float, seconds: float, tokens: Sequence[int]
) -> Seen:
    times = poisson_times(load * capacity, seconds, seed)
    arrivals = [Arrival(at, f"caller {k % CALLERS}", tokens[k % len(tokens)]) for k, at in enumerate(times)]
    answers = simulate(cluster, arrivals)
    answered = [(a.at + r.latency_s, r.latency_s) for a, r in zip(arrivals, answers, strict=True) if r.answered]
    return _summary(load, seed, seconds, answered, len(answers) - len(answered), len(arrivals))


def _summary(
    load: float, seed: int, seconds: float, answered: Sequence[tuple[float, float]], refused: int, came: int
) -> Seen:
    last = max((done for done, _ in answered), default=0.0)
    latencies = [latency for _, latency in answered]
    return Seen(
        load,
        seed,
        offered_per_s=came / seconds,
        answered_per_s=len(answered) / max(seconds, last),
        latencies_s=(quantile(latencies, 0.5), quantile(latencies, 0.95), quantile(latencies, 0.99)),
        refused=refused / came,
        otherwise=came - len(answered) - refused,
    )
