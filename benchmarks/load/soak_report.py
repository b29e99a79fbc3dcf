"""The results of a soak, as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.harness.record import Conditions
from benchmarks.load.tally import Tally, quantile
from benchmarks.load.trend import FEWEST, Trend, trend
from benchmarks.load.watch import Sample
from training.report.markdown import markdown_table

#: The part of a run that is warm-up, and at most how much of it, seconds: caches, pools and the allocator fill.
WARM_UP_SHARE, WARM_UP_MOST_S = 0.25, 300.0

#: Memory is called flat where growth by this share of it per hour can be ruled out.
SEEN_SHARE_PER_HOUR = 0.05


def after_warm_up(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that a trend is read from."""
    begin = min(WARM_UP_MOST_S, WARM_UP_SHARE * samples[-1].time_s)
    return [one for one in samples if one.time_s > begin]


def memory_trend(samples: Sequence[Sample]) -> Trend | None:
    """Return the trend of memory after warm-up, MB per hour; None where it was not watched for long enough."""
    kept = after_warm_up(samples)
    return trend([one.time_s for one in kept], [one.rss_mb for one in kept])


def verdict(samples: Sequence[Sample]) -> str:
    """Return in words whether memory is flat: that it did not grow says something where growth would have been seen."""
    memory = memory_trend(samples)
    if memory is None:
        return f"memory: fewer than {FEWEST} samples after warm-up"
    figures = f"{memory.per_hour:+.1f} MB per hour after warm-up, 95 % interval {memory.low:+.1f} to {memory.high:+.1f}"
    if memory.grows:
        return f"**memory grows**: {figures}"
    seen = SEEN_SHARE_PER_HOUR * after_warm_up(samples)[0].rss_mb
    return f"memory is flat: {figures}" if memory.high <= seen else f"memory: the run is too short to say; {figures}"


def page(samples: Sequence[Sample], tally: Tally, conditions: Conditions, *, contradicted: int) -> str:
    """Return the page.

    Args:
        contradicted: recorded answers of the artifact that the idle server did not give.
    """
    measured = conditions.measured
    kept = after_warm_up(samples)
    rows = {
        "minutes": f"{samples[-1].time_s / 60:.1f}",
        "rows answered and compared": f"{tally.rows}",
        "wrong answers": f"{tally.wrong + contradicted}",
        "other faults (a status or a break that should not be)": f"{tally.fault_count}",
        "memory at the first and last sample after warm-up, MB": f"{kept[0].rss_mb:.1f}, {kept[-1].rss_mb:.1f}",
        "open files, least and most after warm-up": _range([one.open_files for one in kept]),
        "threads, least and most after warm-up": _range([one.threads for one in kept]),
        "rows per second, median interval": f"{quantile([one.rows_per_s for one in kept], 0.5):.1f}",
        "latency of POST /predict, p50, p95, p99, ms": ", ".join(
            f"{1000 * quantile(tally.latencies_s, share):.0f}" for share in (0.5, 0.95, 0.99)
        ),
    }
    faults = "".join(f"- {fault}\n" for fault in tally.faults)
    faults = f"Faults:\n\n{faults}\n" if faults else ""
    return f"""# Soak

`{measured["command"]}`, {measured["date"]}, commit {measured["commit"]}, {conditions.hardware}; {measured["versions"]}.
Clients of every kind at once: predictions of known rows by map and laplace, evaluations, hostile requests and
bytes, clients that vanish after 50 ms, activations where there are two artifacts, feedback and jobs.

{verdict(samples)}.

{markdown_table(["what", "value"], rows.items())}
{markdown_table(["came to its end as it should", "count"], sorted(tally.done.items()))}
{markdown_table(["refusals and failures of good requests", "count"], _counts(tally.errors))}
{markdown_table(["answers to hostile requests", "count"], _counts(tally.expected))}
{faults}soak.csv has every sample.
"""


def _counts(counted: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counted.items()) or [("none", 0)]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.0f}, {max(values):.0f}"
