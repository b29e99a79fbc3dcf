"""A server process from outside: its memory, files and threads beside what its clients saw, every few seconds."""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks.load.tally import Tally, quantile


@dataclass(frozen=True)
class Sample:
    """One line of the record; what cannot be watched is not a number.

    Attributes:
        time_s: seconds since the load began.
        rss_mb: resident memory of the server and its children, MB.
        rows_per_s: rows answered to POST /predict, in this interval.
        p50_ms, p95_ms, p99_ms: latencies of POST /predict in this interval.
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


def sample(process: psutil.Process | None, tally: Tally, time_s: float, interval_s: float) -> Sample:
    """Return the present state, and begin another interval."""
    latencies, rows = tally.next_interval()
    own = _process_figures(process)
    return Sample(
        time_s=round(time_s, 2),
        **own,
        rows_per_s=round(rows / max(interval_s, 1e-9), 3),
        p50_ms=round(1000 * quantile(latencies, 0.5), 1),
        p95_ms=round(1000 * quantile(latencies, 0.95), 1),
        p99_ms=round(1000 * quantile(latencies, 0.99), 1),
        wrong=tally.wrong,
        faults=tally.fault_count,
        errors=" ".join(f"{code.replace(' ', '_')}={count}" for code, count in sorted(tally.errors.items())),
    )


def _process_figures(process: psutil.Process | None) -> Mapping[str, float]:
    unknown = dict.fromkeys(("rss_mb", "open_files", "threads"), float("nan"))
    if process is None:
        return unknown
    try:
        family = [process, *process.children(recursive=True)]
        return {
            "rss_mb": round(sum(one.memory_info().rss for one in family) / 1e6, 3),
            "open_files": process.num_fds(),
            "threads": process.num_threads(),
        }
    except psutil.Error:
        return unknown


async def record(
    process: psutil.Process | None, tally: Tally, path: Path, *, seconds: float, every_s: float
) -> list[Sample]:
    """Return samples for so long; each is a line of a CSV file as soon as it is taken, and one of the console."""
    begun = last = time.perf_counter()
    samples: list[Sample] = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Sample)])
        writer.writeheader()
        while last - begun < seconds:
            await asyncio.sleep(max(0.0, min(last + every_s, begun + seconds) - time.perf_counter()))
            now = time.perf_counter()
            samples.append(sample(process, tally, now - begun, now - last))
            last = now
            writer.writerow(asdict(samples[-1]))
            file.flush()
            one = samples[-1]
            print(
                f"{one.time_s:7.0f} s  {one.rss_mb:8.1f} MB  {one.open_files:4.0f} files  {one.threads:3.0f} threads  "
                f"{one.rows_per_s:6.1f} rows/s  p50 {one.p50_ms:.0f} p99 {one.p99_ms:.0f} ms  "
                f"wrong {one.wrong}  faults {one.faults}  {one.errors}",
                flush=True,
            )
    return samples
