"""Replicas on a local Ray cluster beside one process: throughput, what Ray adds to one request, and twice the capacity.

Every device has one thread. Clients, ingress and devices share this machine's cores, so that what Ray costs counts
against it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.process import serving
from benchmarks.harness.provenance import ARTIFACT
from benchmarks.load.known_rows import TEXTS
from benchmarks.load.open_arrivals import Callers, closed_loop, open_loop, poisson_times
from training.report.markdown import markdown_table

#: Engines: how many scorers of Ray; 0: a plain server, in one process.
ENGINES = {"one process": 0, "Ray, 1 replica": 1, "Ray, 2 replicas": 2}
MODE, CLIENTS, ALONE = "laplace", 32, 40
#: Few enough rows that twice the capacity fills the queue in seconds; Ray's ingress admits so many for each replica.
SETTINGS: dict[str, Any] = {
    "artifact": str(ARTIFACT),
    "auth": "off",
    "log_level": "error",
    "max_queue_rows": 64,
    "max_inputs": 16,
    "batch_tokens": 512,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def measure(*, seconds: float, turns: int) -> list[dict[str, dict[str, float]]]:
    """Return, turn by turn, what each engine did: ``per_s``, ``alone_ms``, ``goodput``, ``otherwise``."""
    found = []
    for turn in range(turns):
        of_turn: dict[str, dict[str, float]] = {}
        for name, scorers in ENGINES.items():
            with served(scorers) as url:
                of_turn[name] = asyncio.run(_measured(url, seconds, seed=turn))
            print(f"turn {turn + 1}, {name}: {of_turn[name]}", flush=True)
        found.append(of_turn)
    return found


async def _measured(url: str, seconds: float, seed: int) -> dict[str, float]:
    bodies: list[dict[str, Any]] = [{"inputs": [{"text": text}], "options": {"mode": MODE}} for text in TEXTS]
    async with Callers(url, {}) as callers:
        await closed_loop(callers, bodies, CLIENTS, min(5.0, seconds))
        begun = time.perf_counter()
        alone = [await callers.ask(k, bodies[k % len(bodies)], 0.0, begun) for k in range(ALONE)]
        capacity = await closed_loop(callers, bodies, CLIENTS, seconds)
        outcomes = await open_loop(callers, bodies, poisson_times(2 * capacity, seconds, seed))
    answered = [one for one in outcomes if one.status == 200]
    last = max((one.done for one in answered), default=0.0)
    return {
        "per_s": capacity,
        "alone_ms": 1000 * statistics.median(one.done - one.sent for one in alone),
        "goodput": len(answered) / max(seconds, last) / capacity,
        "refused": sum(one.status == 429 for one in outcomes) / len(outcomes),
        "otherwise": float(sum(one.status not in (200, 429) for one in outcomes)),
    }


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
        each = [turn[name] for turn in turns]
        ratios = [turn[name]["per_s"] / turn["one process"]["per_s"] for turn in turns]
        more = [turn[name]["alone_ms"] - turn["one process"]["alone_ms"] for turn in turns]
        rows.append(
            (
                name,
                _spread([one["per_s"] for one in each], 1),
                _spread(ratios, 2),
                _spread([one["alone_ms"] for one in each], 1),
                _spread(more, 1),
                _spread([one["goodput"] for one in each], 2),
                f"{sum(one['otherwise'] for one in each):.0f}",
            )
        )
    heading = (
        "engine",
        "answers /s",
        "of one process",
        "one request, ms",
        "more than one process",
        "goodput",
        "failed",
    )
    return markdown_table(heading, rows)


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle
