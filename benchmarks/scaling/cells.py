"""A cell, one event loop with some devices behind it: what arithmetic says of it and what the simulation does."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.load.open_arrivals import CALLERS, poisson_times
from benchmarks.load.tally import quantile
from benchmarks.scaling.costs import DeviceCost, HostCost
from benchmarks.scaling.simulation import Arrival, Cluster, simulate, simulate_clients

#: Padded tokens of a batch on a GPU, and the share of a full batch's time that a batch costs whatever is in it.
TOKEN_BUDGET, BASE_SHARE = 2048, 0.1
#: Of the capacity, what is offered to see how long answers take.
OFFERED = 0.7
SECONDS = 4.0


@dataclass(frozen=True)
class Cell:
    """What comes of a cell: requests of one row a second, seconds, and what limits it: devices or event loop."""

    arithmetic_per_s: float
    saturated_per_s: float
    offered_per_s: float
    p50_s: float
    p99_s: float
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
    saturated = simulate_clients(cluster, clients, SECONDS)
    times = poisson_times(OFFERED * arithmetic, SECONDS, seed=0)
    answers = simulate(cluster, [Arrival(at, f"caller {k % CALLERS}", tokens) for k, at in enumerate(times)])
    latencies = [answer.latency_s for answer in answers if answer.answered]
    return Cell(
        arithmetic_per_s=arithmetic,
        saturated_per_s=saturated,
        offered_per_s=len(times) / SECONDS,
        p50_s=quantile(latencies, 0.5),
        p99_s=quantile(latencies, 0.99),
        limit="devices" if devices * device_per_s < 1 / request_s else "the event loop",
    )
