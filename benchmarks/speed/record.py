"""What a benchmark found, and the two files that hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.provenance import versions
from benchmarks.speed.timing import Ratio

FOLDER = Path(__file__).parents[1]
RESULTS, PAGE = "results.json", "RESULTS.md"
#: What a figure is: one with a target that somebody set, one that is compared with what arithmetic says it must be
#: (how it grows, what a formula of its size gives), or one that is merely measured.
Kind = Literal["target", "check", "figure"]


@dataclass(frozen=True)
class Record:
    """One figure.

    Attributes:
        name: ``part: what``; a record of the same name and hardware is replaced.
        value, low, high: median of several turns, and their range.
        baseline: what ``value`` is a ratio to, or its unit.
        target: what it should be, or None where nothing says so.
        met: whether it is.
        kind: whether ``target`` was set, follows from arithmetic, or is not there.
        hardware: processor and cores, or card.
        measured: date, commit, artifact, command, threads and versions.
    """

    name: str
    value: float
    low: float
    high: float
    baseline: str
    target: str | None
    met: bool | None
    kind: Kind
    hardware: str
    measured: Mapping[str, str]


@dataclass(frozen=True)
class Conditions:
    """Where and when a benchmark runs; the last two fields of its records.

    Attributes:
        out: folder of its figures, and of what a part writes beside them.
    """

    hardware: str
    measured: Mapping[str, str]
    out: Path = FOLDER

    def record(
        self,
        name: str,
        ratio: Ratio,
        baseline: str,
        *,
        limit: float | None = None,
        side: Literal["at most", "at least"] = "at most",
        arithmetic: float | None = None,
    ) -> Record:
        """Return a figure with its verdict.

        Args:
            limit: a target that was set; ``arithmetic``: in its place, what growth or size must be by a formula.
            side: of the limit on which the figure should be.
        """
        kind: Kind = "target" if limit is not None else ("check" if arithmetic is not None else "figure")
        limit = arithmetic if limit is None else limit
        met = None if limit is None else (ratio.value <= limit if side == "at most" else ratio.value >= limit)
        target = None if limit is None else f"{side} {limit:.4g}"
        digits = (_digits(v) for v in asdict(ratio).values())
        return Record(name, *digits, baseline, target, met, kind, self.hardware, self.measured)

    def with_versions(self, *packages: str) -> Conditions:
        """Return the same with further packages' versions, of those that are installed."""
        known = [self.measured["versions"], versions(packages)]
        return replace(self, measured={**self.measured, "versions": ", ".join(filter(None, known))})


def _digits(value: float) -> float:
    """Return three significant digits."""
    return float(f"{value:.3g}") if math.isfinite(value) else value


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the old records with the new ones in their place or behind them."""
    found = {(r["name"], r["hardware"]): dict(r) for r in old}
    for record in new:
        found[record.name, record.hardware] = asdict(record)
    return list(found.values())


def part_of(name: str) -> str:
    """Return the part of a record's name."""
    return name.partition(":")[0]


def complete(records: Sequence[Mapping[str, Any]], new: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the records without old ones of the parts and hardware of ``new`` that are not among them any more."""
    known = {(r.name, r.hardware) for r in new}
    parts = {(part_of(r.name), r.hardware) for r in new}
    return [
        dict(r)
        for r in records
        if (r["name"], r["hardware"]) in known or (part_of(r["name"]), r["hardware"]) not in parts
    ]


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a folder, none where it has none."""
    path = folder / RESULTS
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def write(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``results.json`` and the page that is made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(list(records), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(render(records), encoding="utf-8")


def keep(part: Iterable[Record], folder: Path) -> Iterator[Record]:
    """Yield a part's records, each once it is in the files; at the end its old ones that did not come are gone."""
    new = []
    for record in part:
        new.append(record)
        write(merged(read(folder), [record]), folder)
        yield record
    write(complete(read(folder), new), folder)


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page: for each hardware what was measured when, the targets, and everything else by part."""
    judged = [r for r in records if r["kind"] == "target"]
    lines = [
        "# Speed",
        "",
        "Written by `python -m benchmarks.speed` (`make bench`) and `python -m benchmarks.gpu` (`make bench-gpu`)",
        "from results.json; a part is made anew by the command beside it, and the others stand as they are. Figures",
        "of time are ratios of times taken in turns in one run, where no unit is named: the median of the turns, and",
        "their range. Those of memory are exact: the running total of torch's allocator. docs/lab-notes.md says why",
        "they are so; growth.png shows what grows with what, load/open_loop.md the server past its capacity.",
        "",
        f"Targets met: {sum(r['met'] for r in judged)} of {len(judged)}. What was merely measured is counted apart,",
        "growth and sizes too, which are compared with what arithmetic says that they must be.",
    ]
    for hardware in dict.fromkeys(r["hardware"] for r in records):
        own = [r for r in records if r["hardware"] == hardware]
        first = {part: i for i, part in enumerate(dict.fromkeys(part_of(r["name"]) for r in own))}
        own.sort(key=lambda r: first[part_of(r["name"])])
        lines += ["", f"## {hardware}", "", *_parts(own)]
        targets = [r for r in own if r["kind"] == "target"]
        if targets:
            lines += ["", f"### Targets: {sum(r['met'] for r in targets)} of {len(targets)} met", ""]
            lines += [
                "| part | what | value | range | to | target | |",
                "| --- | --- | ---: | ---: | --- | --- | --- |",
            ]
            lines += [f"| {part_of(r['name'])} {_row(r, 'met', '**missed**')}" for r in targets]
        others = [r for r in own if r["kind"] != "target"]
        checked = [r for r in others if r["kind"] == "check"]
        if others:
            holds = f"; {sum(r['met'] for r in checked)} of {len(checked)} as arithmetic says" if checked else ""
            lines += ["", f"### Measured beside them: {len(others)} figures{holds}"]
        for part in dict.fromkeys(part_of(r["name"]) for r in others):
            lines += ["", f"#### {part}", ""]
            lines += ["| what | value | range | to | arithmetic says | |", "| --- | ---: | ---: | --- | --- | --- |"]
            lines += [_row(r, "so it is", "**not so**") for r in others if part_of(r["name"]) == part]
    return "\n".join(lines) + "\n"


def _parts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of what was measured when and from what."""
    lines = ["| part | command | date | commit | artifact | threads | versions |", "| --- " * 7 + "|"]
    for part in dict.fromkeys(part_of(r["name"]) for r in records):
        measured = [json.dumps(r["measured"], sort_keys=True) for r in records if part_of(r["name"]) == part]
        for m in map(json.loads, dict.fromkeys(measured)):
            cells = [part, f"`{m['command']}`", m["date"], m["commit"], m.get("artifact", ""), m["threads"]]
            lines.append(f"| {' | '.join([*cells, m['versions']])} |")
    return lines


def _row(record: Mapping[str, Any], right: str, wrong: str) -> str:
    verdict = "" if record["met"] is None else (right if record["met"] else wrong)
    what = record["name"].partition(":")[2].strip()
    spread = f"{record['low']:.3g} to {record['high']:.3g}"
    return (
        f"| {what} | {record['value']:.3g} | {spread} | {record['baseline']} | {record['target'] or ''} | {verdict} |"
    )
