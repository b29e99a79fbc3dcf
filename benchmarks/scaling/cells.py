"""A cell, one event loop with some devices behind it: what arithmetic says of it and what the simulation does.

Three things here are assumptions: a tenth of a full batch's time is the same for any batch, a batch holds 2,048 tokens,
and a refusal takes the event loop a quarter of what an answer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.open_arrivals import CALLERS, poisson_times
from benchmarks.load.tally import quantile
from benchmarks.scaling.costs import DeviceCost, HostCost
from benchmarks.scaling.simulation import Arrival, Cluster, simulate, simulate_clients

#: Padded tokens of a batch on a GPU, and the share of a full batch's time that a batch costs whatever is in it.
TOKEN_BUDGET, BASE_SHARE = 2048, 0.1
#: Of the capacity, what is offered to see how long answers take.
OFFERED = 0.7
#: Of the simulated time: the first part, in which the queue fills, is not looked at. The clients that fill a cell need
#: less of it.
SECONDS, WARM_S, FULL_S = 40.0, 10.0, 5.0
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Cell:
    """What comes of a cell: requests of one row a second, seconds, and what limits it: devices or event loop.

    Attributes:
        p50_s, p99_s: of each simulation, which differ in their arrivals.
    """

    devices: int
    arithmetic_per_s: float
    saturated_per_s: float
    offered_per_s: float
    p50_s: tuple[float, ...]
    p99_s: tuple[float, ...]
    limit: str


def simulated_cell(devices: int, *, device_per_s: float, tokens: int, request_s: float) -> Cell:
    """Return what the arithmetic says of a cell, and what the simulation does.

    Args:
        device_per_s: predictions a second of one device whose batches are full.
        tokens: of each prompt; ``request_s``: processor seconds of the event loop for a request.
    """
    batch_s = TOKEN_BUDGET / tokens / device_per_s
    device = DeviceCost(BASE_SHARE * batch_s, (1 - BASE_SHARE) * batch_s / TOKEN_BUDGET)
    cluster = Cluster(
        device,
        HostCost(request_s, 0.0, request_s / 4),
        replicas=devices,
        token_budget=TOKEN_BUDGET,
        queue_rows=2048 * devices,
    )
    arithmetic = min(devices * device_per_s, 1 / request_s)
    waiting = 3 * devices * TOKEN_BUDGET // tokens
    clients = [(f"caller {k % CALLERS}", [tokens]) for k in range(waiting)]
    saturated = simulate_clients(cluster, clients, FULL_S)
    offered = OFFERED * arithmetic
    latencies = [_latencies(cluster, tokens, poisson_times(offered, SECONDS, seed)) for seed in SEEDS]
    return Cell(
        devices,
        arithmetic_per_s=arithmetic,
        saturated_per_s=saturated,
        offered_per_s=offered,
        p50_s=tuple(quantile(of_one, 0.5) for of_one in latencies),
        p99_s=tuple(quantile(of_one, 0.99) for of_one in latencies),
        limit="devices" if devices * device_per_s < 1 / request_s else "the event loop",
    )


def _latencies(cluster: Cluster, tokens: int, times: Sequence[float]) -> list[float]:
    arrivals = [Arrival(at, f"caller {k % CALLERS}", tokens) for k, at in enumerate(times)]
    answers = simulate(cluster, arrivals)
    return [b.latency_s for a, b in zip(arrivals, answers, strict=True) if b.answered and a.at >= WARM_S]
