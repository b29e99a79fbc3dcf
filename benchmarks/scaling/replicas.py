"""Replicas on a local Ray cluster beside one process: throughput, what Ray adds to one request, and twice the capacity.

Every device has one thread. Clients, ingress and devices share this machine's cores, so that what Ray costs counts
against it. Two plain servers with half of the requests each show what this machine's cores give without Ray.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness.process import serving
from benchmarks.harness.provenance import ARTIFACT
from benchmarks.load.known_rows import TEXTS
from benchmarks.load.open_arrivals import Callers, closed_loop, open_loop, poisson_times
from training.report.markdown import markdown_table

#: Engines: scorers of Ray, or 0; and servers side by side.
ENGINES = {
    "one process": (0, 1),
    "two processes": (0, 2),
    "Ray, 1 replica": (1, 1),
    "Ray, 2 replicas": (2, 1),
}
PREDICTIVE, ALONE = "laplace", 20
#: Rows of a request, and clients that wait at once: rows for more than one batch of each device.
LOADS = {1: 56, 4: 14}
#: Seconds before capacity is measured: oneDNN writes its code for each new shape of a batch.
WARM_S = 12.0
#: Few enough rows that twice the capacity fills the queue in seconds; Ray's ingress admits so many for each replica.
SETTINGS: dict[str, Any] = {
    "artifact": str(ARTIFACT),
    "auth": "off",
    "log_level": "error",
    "max_queue_rows": 64,
    "max_inputs": 16,
    "batch_tokens": 256,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def measure(*, seconds: float, turns: int) -> list[dict[str, dict[str, float]]]:
    """Return, turn by turn, what each engine did; each turn begins with another one, so that no drift favours one.

    ``rows_per_s_1``, ``rows_per_s_4``: rows answered at capacity, by rows of a request; ``cpu_ms_1``, ``cpu_ms_4``:
    processor time of the whole machine, clients and all, for one of these rows; ``alone_ms``: one request alone;
    ``goodput``: of the capacity, at twice of it; ``refused``: share then; ``otherwise``: answers but 200 and 429.
    """
    found = []
    for turn in range(turns):
        of_turn: dict[str, dict[str, float]] = {}
        engines = list(ENGINES.items())
        for name, (scorers, servers) in engines[turn % len(engines) :] + engines[: turn % len(engines)]:
            with ExitStack() as stack:
                urls = [stack.enter_context(served(scorers)) for _ in range(servers)]
                of_turn[name] = asyncio.run(_measured(urls, seconds, seed=turn))
            print(f"turn {turn + 1}, {name}: {of_turn[name]}", flush=True)
        found.append(of_turn)
    return found


async def _measured(urls: Sequence[str], seconds: float, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    async with Callers(urls[0], {}, urls[1:]) as callers:
        single = _bodies(1)
        await closed_loop(callers, single, LOADS[1], min(WARM_S, seconds))
        begun = time.perf_counter()
        alone = [await callers.ask(k, single[k % len(single)], 0.0, begun) for k in range(ALONE)]
        for rows, clients in LOADS.items():
            begun, busy_s = time.perf_counter(), _busy_s()
            per_s = await closed_loop(callers, _bodies(rows), clients, seconds)
            answered_rows = rows * per_s * (time.perf_counter() - begun)
            found[f"rows_per_s_{rows}"] = rows * per_s
            found[f"cpu_ms_{rows}"] = 1000 * (_busy_s() - busy_s) / answered_rows
        capacity = found["rows_per_s_1"]
        outcomes = await open_loop(callers, single, poisson_times(2 * capacity, seconds, seed))
    answered = [one for one in outcomes if one.status == 200]
    last = max((one.done for one in answered), default=0.0)
    return found | {
        "alone_ms": 1000 * statistics.median(one.done - one.sent for one in alone),
        "goodput": len(answered) / max(seconds, last) / capacity,
        "refused": sum(one.status == 429 for one in outcomes) / len(outcomes),
        "otherwise": float(sum(one.status not in (200, 429) for one in outcomes)),
    }


def _bodies(rows: int) -> list[dict[str, Any]]:
    """Return requests of so many rows each."""
    texts = itertools.cycle(TEXTS)
    inputs = [[{"text": next(texts)} for _ in range(rows)] for _ in TEXTS]
    return [{"inputs": of_one, "options": {"predictive": PREDICTIVE}} for of_one in inputs]


def _busy_s() -> float:
    """Return the seconds for which this machine's cores have worked."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


@contextmanager
def served(scorers: int) -> Iterator[str]:
    """Yield the address of an engine once it is ready: a plain server, or Ray with so many scorers.

    Raises:
        RuntimeError: it left before it was ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SETTINGS, "host": "127.0.0.1", "port": port, "jobs_dir": str(Path(folder) / "jobs")}
        if scorers:
            file = Path(folder) / "cluster.json"
            # The ingress takes no core of its own in Ray's books: there are as many as scorers.
            file.write_text(json.dumps({"settings": settings, "scorers": scorers, "ingress_cpus": 0}))
            command = ["-m", "service.ray_serve", str(file)]
        else:
            flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items()]
            command = ["-m", "service", *(part for flag in flags for part in flag)]
        with serving(command, f"http://127.0.0.1:{port}", environment=os.environ | ONE_THREAD) as address:
            yield address


def engines_table(turns: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return the table: medians of the turns, and their ranges; ratios within a turn."""
    rows = []
    for name in ENGINES:
        each, cells = [turn[name] for turn in turns], [name]
        for of in LOADS:
            ratios = [turn[name][f"rows_per_s_{of}"] / turn["one process"][f"rows_per_s_{of}"] for turn in turns]
            cells += [spread([one[f"rows_per_s_{of}"] for one in each], 1), spread(ratios, 2)]
            cells.append(spread([one[f"cpu_ms_{of}"] for one in each], 0))
        more = [turn[name]["alone_ms"] - turn["one process"]["alone_ms"] for turn in turns]
        cells += [spread([one["alone_ms"] for one in each], 0), spread(more, 0)]
        cells += [spread([one["goodput"] for one in each], 2), f"{sum(one['otherwise'] for one in each):.0f}"]
        rows.append(tuple(cells))
    heading = ["engine"]
    for of in LOADS:
        heading += [f"rows /s, {of} a request", "of one process", "processor ms a row"]
    heading += ["one request, ms", "more than one process", "goodput", "failed"]
    return markdown_table(heading, rows)


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median of values, and their range where there is more than one."""
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle
