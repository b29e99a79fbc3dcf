"""The server at twice its capacity: ``benchmarks.load.overload`` on the default artifact, and its page.

The runs themselves are kept in load/open_loop.json, and load/open_loop.md is made of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

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
RUNS, PAGE = Path("load", "open_loop.json"), Path("load", "open_loop.md")


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield the targets at twice the capacity for each setting, and the capacity; write runs and page.

    Raises:
        RuntimeError: the queue never filled, so that nothing can be said of refusals; a quick run leaves them out.
    """
    conditions = conditions.with_versions("uvicorn", "fastapi", "aiohttp")
    by_setting: dict[str, list[Run]] = {}
    for setting in overload.settings():
        print(f"{setting.name}:", flush=True)
        with served(FLAGS, cores=setting.server) as url:
            plan = overload.QUICK if quick else overload.Plan()
            runs = overload.measure(url, plan, predictive=PREDICTIVE, cores=setting.clients)
        if not quick and not all(one.twice.refused for one in runs):
            raise RuntimeError(
                f"{setting.name}: a run refused nothing, so its queue never filled: a longer load is needed"
            )
        by_setting[setting.name] = runs
        yield from records(conditions, setting.name, runs)
    keep(by_setting, conditions)


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
        refusals = [one.twice.refusals_ms[1] for one in runs]
        figures.append(("95th percentile of the refusals", refusals, "ms", overload.REFUSAL_MS))
    worst = [float(max(one.disorder for one in runs))]
    figures.append(("answered otherwise, refused without a time or in vain", worst, "requests", 0.0))
    figures.append(("capacity", [one.capacity_per_s for one in runs], "answers a second", None))
    for what, values, unit, limit in figures:
        yield conditions.record(f"overload: {what}, {name}", spread(values), unit, limit=limit)


def keep(by_setting: Mapping[str, Sequence[Run]], conditions: Conditions) -> None:
    """Write the runs, and their page."""
    kept = {
        "measured": {"hardware": conditions.hardware, **conditions.measured},
        "settings": {name: [asdict(one) for one in runs] for name, runs in by_setting.items()},
    }
    (conditions.out / RUNS).parent.mkdir(parents=True, exist_ok=True)
    (conditions.out / RUNS).write_text(json.dumps(kept, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(conditions.out)


def write_page(folder: Path) -> None:
    """Write the page of the runs that a folder has; without any the page stays as it is."""
    if (folder / RUNS).is_file():
        kept = json.loads((folder / RUNS).read_text(encoding="utf-8"))
        (folder / PAGE).write_text(page(kept), encoding="utf-8")


def page(kept: Mapping[str, Any]) -> str:
    """Return the page of runs as they are kept."""
    m = kept["measured"]
    head = (
        f"`{m['command']}`, {m['date']}, commit {m['commit']}, {m['hardware']}, artifact {m['artifact']}; "
        f"{m['versions']}."
    )
    by_setting = TypeAdapter(dict[str, list[Run]]).validate_python(kept["settings"])
    return overload.page(by_setting, head, queue_rows=QUEUE_ROWS, predictive=PREDICTIVE)
