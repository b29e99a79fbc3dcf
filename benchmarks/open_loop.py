"""Half, all and twice of what the server can answer, sent without waiting for answers: what comes of it?

    python -m benchmarks.open_loop              # a server of its own on the default artifact, 5 minutes
    python -m benchmarks.open_loop --url URL --queue-rows 2048      # a server that runs, with its max_queue_rows

The capacity is found by clients that wait for their answers. Then requests come at random times (Poisson) at each
load, with latencies from the times they were meant for. At twice the capacity the answered ones should stay near
capacity and wait no longer than it takes to empty a full queue, and the others should be told when to come again. The
results are open_loop.md.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load.known_rows import TEXTS
from benchmarks.load.open_arrivals import Callers, Outcome, after_their_wait, closed_loop, open_loop, poisson_times
from benchmarks.load.tally import quantile
from benchmarks.speed.__main__ import conditions_here
from benchmarks.speed.process import served
from benchmarks.speed.record import Conditions

OUT = Path(__file__).with_name("load")
LOADS = (0.5, 1.0, 2.0)
#: Rows that may wait at the server that is started here: short, so that twice the capacity fills the queue in seconds.
QUEUE_ROWS = 64
#: The batch on the device and the one after it, in rows of this benchmark: what waits before a row beside the queue.
BATCH_ROWS = 32
CLOSED_LOOP_CLIENTS = 64
#: Most of the last refused requests that are sent again.
SENT_AGAIN = 20


@dataclass(frozen=True)
class Run:
    """What came of one load, offered for ``seconds``; ``again``: refused requests sent again after their wait."""

    load: float
    seconds: float
    outcomes: Sequence[Outcome]
    again: Sequence[Outcome]

    def of(self, status: int) -> list[Outcome]:
        """Return the outcomes with a status."""
        return [one for one in self.outcomes if one.status == status]

    @property
    def goodput_per_s(self) -> float:
        """Answers per second, to the last answer."""
        last = max((one.done for one in self.outcomes), default=0.0)
        return len(self.of(200)) / max(self.seconds, last)

    @property
    def odd(self) -> int:
        """How many were neither answered nor refused for want of room."""
        return len(self.outcomes) - len(self.of(200)) - len(self.of(429))


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return the exit status, 1 where a promise is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.open_loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a server that runs already; its key, if any, in LAPLORA_TOKEN")
    parser.add_argument("--queue-rows", type=int, default=QUEUE_ROWS, help="max_queue_rows of that server")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load (default: 60)")
    parser.add_argument("--mode", default="map", choices=("map", "fast", "laplace"), help="of the requests (map)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the results (default: {OUT.name})")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    conditions = conditions_here(given, module="benchmarks.open_loop").with_versions("uvicorn", "fastapi", "httpx")
    with _own_server() if options.url is None else _known_server(options.url) as url:
        capacity, runs = asyncio.run(_measure(url, options.mode, options.seconds))
    text = page(capacity, runs, conditions, queue_rows=options.queue_rows)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "open_loop.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(kept for _, kept in promises(capacity, runs[-1], options.queue_rows)) else 1


async def _measure(url: str, mode: str, seconds: float) -> tuple[float, list[Run]]:
    token = os.environ.get("LAPLORA_TOKEN")
    rng = random.Random(0)
    bodies: list[dict[str, Any]] = [
        {"inputs": [{"text": rng.choice(TEXTS)}], "options": {"mode": mode}} for _ in range(512)
    ]
    async with Callers(url, {"authorization": f"Bearer {token}"} if token else {}) as callers:
        await closed_loop(callers, bodies, CLOSED_LOOP_CLIENTS, min(5.0, seconds))
        capacity = await closed_loop(callers, bodies, CLOSED_LOOP_CLIENTS, seconds / 2)
        runs = []
        for seed, load in enumerate(LOADS):
            print(f"capacity {capacity:.1f} answers a second; now {load:g} times that for {seconds:g} s", flush=True)
            outcomes = await open_loop(callers, bodies, poisson_times(load * capacity, seconds, seed))
            refused = [one for one in outcomes if one.status == 429][-SENT_AGAIN:]
            runs.append(Run(load, seconds, outcomes, await after_their_wait(callers, bodies, refused)))
    return capacity, runs


def promises(capacity: float, run: Run, queue_rows: int) -> list[tuple[str, bool]]:
    """Return what is promised at twice the capacity, in words with the figures, and whether it is kept."""
    bound = full_queue_s(capacity, queue_rows)
    late = quantile([one.latency_s for one in run.of(200)], 0.99)
    told = [one for one in run.of(429) if one.retry_after_s is not None]
    accepted = sum(one.status == 200 for one in run.again)
    return [
        (
            f"answers stay near capacity: {run.goodput_per_s:.1f} of {capacity:.1f} a second, at least 80 %",
            run.goodput_per_s >= 0.8 * capacity,
        ),
        (
            f"the answered wait no longer than a full queue takes: 99th percentile {late:.1f} s, at most 1.5 times "
            f"{bound:.1f} s",
            late <= 1.5 * bound,
        ),
        (f"each of {len(run.of(429))} refusals says when to come again", len(told) == len(run.of(429))),
        (
            f"who comes again then, the load gone, is let in: {accepted} of {len(run.again)}",
            accepted == len(run.again),
        ),
        (f"nothing is answered otherwise: {run.odd}", run.odd == 0),
    ]


def full_queue_s(capacity: float, queue_rows: int) -> float:
    """Return the seconds that a full queue and the batches before it take."""
    return (queue_rows + 2 * BATCH_ROWS) / capacity


def page(capacity: float, runs: Sequence[Run], conditions: Conditions, *, queue_rows: int) -> str:
    """Return the page."""
    measured = conditions.measured
    return "\n".join(
        [
            "# Open loop",
            "",
            f"`{measured['command']}`, {measured['date']}, {conditions.hardware}; {measured['versions']}.",
            f"Clients and server share the machine. Capacity by {CLOSED_LOOP_CLIENTS} clients that wait for their",
            f"answers: {capacity:.1f} a second, of one row each. Poisson arrivals, latency from the time a request was",
            f"meant for; {queue_rows} rows may wait.",
            "",
            "| load | offered /s | answered /s | refused (429) | p50 ms | p95 ms | p99 ms | p99 of a refusal, ms | "
            "Retry-After, median s (least to most) | sent late, p99 ms |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_row(run) for run in runs),
            "",
            f"At {runs[-1].load:g} times the capacity:",
            "",
            *(
                f"- {'kept' if kept else '**broken**'}: {what}"
                for what, kept in promises(capacity, runs[-1], queue_rows)
            ),
            "",
        ]
    )


def _row(run: Run) -> str:
    refused = run.of(429)
    latencies = [one.latency_s for one in run.of(200)]
    waits = [one.retry_after_s for one in refused if one.retry_after_s is not None]
    said = f"{quantile(waits, 0.5):.0f} ({min(waits):.0f} to {max(waits):.0f})" if waits else ""
    cells = [
        f"{run.load:g}",
        f"{len(run.outcomes) / run.seconds:.1f}",
        f"{run.goodput_per_s:.1f}",
        f"{len(refused) / max(len(run.outcomes), 1):.0%}",
        *(_ms(quantile(latencies, share)) for share in (0.5, 0.95, 0.99)),
        _ms(quantile([one.done - one.sent for one in refused], 0.99)),
        said,
        _ms(quantile([one.sent - one.meant for one in run.outcomes], 0.99)),
    ]
    return f"| {' | '.join(cells)} |"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if math.isfinite(seconds) else ""


@contextmanager
def _own_server() -> Iterator[str]:
    # The largest request has to fit one caller's part of the queue.
    with served(["--max-queue-rows", str(QUEUE_ROWS), "--max-inputs", str(QUEUE_ROWS // 4)]) as url:
        yield url


@contextmanager
def _known_server(url: str) -> Iterator[str]:
    yield url.rstrip("/")


if __name__ == "__main__":
    sys.exit(main())
