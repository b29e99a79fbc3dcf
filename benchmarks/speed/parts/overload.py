"""The server at twice its capacity: ``benchmarks.load.overload`` on the default artifact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.harness.process import served
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.timing import spread
from benchmarks.load import overload
from benchmarks.load.overload import Run

PREDICTIVE = "map"
#: Rows that may wait: an eighth of the default's, so that twice the capacity fills the queue in ten seconds, and still
#: a dozen batches, so that the time to empty it is longer than that of a batch.
QUEUE_ROWS = 256
#: The largest request has to fit one caller's part of the queue.
FLAGS = ("--max-queue-rows", str(QUEUE_ROWS), "--max-inputs", str(QUEUE_ROWS // 8))


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the targets at twice the capacity for each setting, and the capacity.

    Raises:
        RuntimeError: the queue never filled, so that nothing can be said of refusals; a quick run leaves them out.
    """
    conditions = conditions.with_versions("uvicorn", "fastapi", "aiohttp")
    for setting in overload.settings():
        print(f"{setting.name}:", flush=True)
        with served(FLAGS, cores=setting.server) as url:
            plan = overload.QUICK if quick else overload.Plan()
            runs = overload.measure(url, plan, predictive=PREDICTIVE, cores=setting.clients)
        if not quick and not all(one.twice.refused for one in runs):
            raise RuntimeError(
                f"{setting.name}: a run refused nothing, so its queue never filled: a longer load is needed"
            )
        yield from records(conditions, setting.name, runs)


def records(conditions: Conditions, name: str, runs: Sequence[Run]) -> Iterator[Record]:
    """Yield the figures of one setting's runs."""
    yield conditions.record(
        f"overload: goodput, {name}",
        spread([one.goodput for one in runs]),
        "of the capacity",
        limit=overload.GOODPUT,
        side="at least",
    )
    figures: list[tuple[str, list[float], str, float | None]] = [
        (
            "99th percentile of the answered",
            [one.emptying(QUEUE_ROWS) for one in runs],
            "the time to empty a full queue",
            overload.EMPTYING,
        )
    ]
    if all(one.twice.refused for one in runs):
        refusals = [one.twice.refusal_ms for one in runs]
        figures.append(("95th percentile of the refusals", refusals, "ms", overload.REFUSAL_MS))
    worst = [float(max(one.disorder for one in runs))]
    figures.append(("answered otherwise, refused without a time or in vain", worst, "requests", 0.0))
    figures.append(("capacity", [one.capacity_per_s for one in runs], "answers a second", None))
    for what, values, unit, limit in figures:
        yield conditions.record(f"overload: {what}, {name}", spread(values), unit, limit=limit)
