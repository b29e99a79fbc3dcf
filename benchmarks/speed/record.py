"""What a benchmark found, and the two files that hold it."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.speed.timing import Ratio

FOLDER = Path(__file__).parents[1]
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "RESULTS.md"


@dataclass(frozen=True)
class Record:
    """One figure.

    Attributes:
        name: ``part: what``; a record of the same name and hardware is replaced.
        value, low, high: median of several turns, and their range.
        baseline: what ``value`` is a ratio to, or its unit.
        target: what it should be, or None where none was set.
        met: whether it is.
        hardware: processor and cores, or card.
        measured: date, command, threads and versions.
    """

    name: str
    value: float
    low: float
    high: float
    baseline: str
    target: str | None
    met: bool | None
    hardware: str
    measured: Mapping[str, str]


@dataclass(frozen=True)
class Conditions:
    """Where and when a benchmark runs; the last two fields of its records."""

    hardware: str
    measured: Mapping[str, str]

    def record(
        self,
        name: str,
        ratio: Ratio,
        baseline: str,
        *,
        limit: float | None = None,
        side: Literal["at most", "at least"] = "at most",
    ) -> Record:
        """Return a figure with its verdict."""
        met = None if limit is None else (ratio.value <= limit if side == "at most" else ratio.value >= limit)
        target = None if limit is None else f"{side} {limit:.4g}"
        return Record(
            name, *(_digits(v) for v in asdict(ratio).values()), baseline, target, met, self.hardware, self.measured
        )

    def with_versions(self, *packages: str) -> Conditions:
        """Return the same with further packages' versions, of those that are installed."""
        known = [self.measured["versions"], versions(packages)]
        return replace(self, measured={**self.measured, "versions": ", ".join(filter(None, known))})


def versions(packages: Sequence[str]) -> str:
    """Return ``name version`` of each package that is installed, with commas between them."""
    found = []
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def _digits(value: float) -> float:
    """Return three significant digits."""
    return float(f"{value:.3g}") if math.isfinite(value) else value


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the old records with the new ones in their place or behind them."""
    found = {(r["name"], r["hardware"]): dict(r) for r in old}
    for record in new:
        found[record.name, record.hardware] = asdict(record)
    return list(found.values())


def write(new: Sequence[Record], results: Path = RESULTS, page: Path = PAGE) -> None:
    """Add records to ``results.json`` and make the page anew from all of them."""
    old = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else []
    records = merged(old, new)
    results.write_text(json.dumps(records, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(render(records), encoding="utf-8")


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page: a table for each hardware and part, and what was missed."""
    judged = [r for r in records if r["met"] is not None]
    lines = [
        "# Speed",
        "",
        "Written by `python -m benchmarks.speed` (`make bench`) and `python -m benchmarks.gpu` (`make bench-gpu`) from",
        "results.json. Figures of time are ratios of times taken in turns in one run, where no unit is named: the",
        "median of the turns, and their range. Those of memory are exact: the running total of torch's allocator.",
        "docs/lab-notes.md says why they are so; growth.png shows what grows with what.",
        f"Targets met: {sum(r['met'] for r in judged)} of {len(judged)}.",
    ]
    for hardware in dict.fromkeys(r["hardware"] for r in records):
        own = [r for r in records if r["hardware"] == hardware]
        lines += ["", f"## {hardware}"]
        for part in dict.fromkeys(r["name"].partition(":")[0] for r in own):
            rows = [r for r in own if r["name"].partition(":")[0] == part]
            lines += ["", f"### {part}", ""]
            lines += [_conditions(m) for m in dict.fromkeys(json.dumps(r["measured"], sort_keys=True) for r in rows)]
            lines += ["", "| what | value | range | to | target | |", "| --- | ---: | ---: | --- | --- | --- |"]
            lines += [_row(r) for r in rows]
    return "\n".join(lines) + "\n"


def _conditions(measured: str) -> str:
    fields = json.loads(measured)
    return f"`{fields['command']}`, {fields['date']}, {fields['threads']} threads; {fields['versions']}."


def _row(record: Mapping[str, Any]) -> str:
    verdict = "" if record["met"] is None else ("met" if record["met"] else "**missed**")
    what = record["name"].partition(":")[2].strip()
    spread = f"{record['low']:.3g} to {record['high']:.3g}"
    return (
        f"| {what} | {record['value']:.3g} | {spread} | {record['baseline']} | {record['target'] or ''} | {verdict} |"
    )
