"""A server process from outside: its memory, files and threads beside what its clients saw, every few seconds."""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.load.tally import Tally, quantile


@dataclass(frozen=True)
class Sample:
    """One line of the record.

    Attributes:
        time_s: seconds since the load began.
        rss_mb: resident memory of the server, MB.
        rows_per_s: rows answered to POST /predict, in this interval.
        p50_ms, p95_ms, p99_ms: latencies of POST /predict in this interval; not a number of none.
        errors: refusals and failures so far, ``code=count`` with spaces between.
    """

    time_s: float
    rss_mb: float
    open_files: float
    threads: float
    rows_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    wrong: int
    faults: int
    errors: str


def process_at(url: str) -> psutil.Process | None:
    """Return the process of this machine that listens at an address; None where it is elsewhere or another user's."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == parts.port and connection.pid:
            return psutil.Process(connection.pid)
    return None


def sample(
    process: psutil.Process, tally: Tally, time_s: float, latencies_s: Sequence[float], rows_per_s: float
) -> Sample:
    """Return the present state, with the latencies and rows of the interval that ends."""
    p50, p95, p99 = (round(1000 * quantile(latencies_s, share), 1) for share in (0.5, 0.95, 0.99))
    return Sample(
        time_s=round(time_s, 2),
        rss_mb=round(process.memory_info().rss / 1e6, 3),
        open_files=process.num_fds(),
        threads=process.num_threads(),
        rows_per_s=round(rows_per_s, 3),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        wrong=tally.wrong,
        faults=tally.fault_count,
        errors=" ".join(f"{code.replace(' ', '_')}={count}" for code, count in sorted(tally.errors.items())),
    )


async def record(process: psutil.Process, tally: Tally, path: Path, *, seconds: float, every_s: float) -> list[Sample]:
    """Return samples for so long; each is a line of a CSV file as soon as it is taken, and one of the console."""
    begun = last = time.perf_counter()
    samples: list[Sample] = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Sample)])
        writer.writeheader()
        while last - begun < seconds:
            answers, rows = len(tally.latencies_s), tally.rows
            await asyncio.sleep(max(0.0, min(last + every_s, begun + seconds) - time.perf_counter()))
            now = time.perf_counter()
            rows_per_s = (tally.rows - rows) / (now - last)
            samples.append(sample(process, tally, now - begun, tally.latencies_s[answers:], rows_per_s))
            last = now
            line = asdict(samples[-1])
            writer.writerow(line)
            file.flush()
            print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    return samples
