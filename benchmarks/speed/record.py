"""What a benchmark found, and the two files that hold it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.provenance import versions
from benchmarks.speed.expected import FIGURES, TARGETS, missing
from benchmarks.speed.timing import Ratio

FOLDER = Path(__file__).parents[1]
RESULTS, PAGE = "results.json", "RESULTS.md"
#: What a figure is: one with a target that somebody set, one that is compared with what arithmetic says it must be
#: (how it grows, what a formula of its size gives), or one that is merely measured.
Kind = Literal["target", "check", "figure"]
#: What the turns say of a limit: all of them alike, or not.
Verdict = Literal["met", "missed", "open"]
Expected = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Record:
    """One figure.

    Attributes:
        name: ``part: what``; a record of the same name and hardware is replaced.
        value, low, high: median of several turns, and their range.
        baseline: what ``value`` is a ratio to, or its unit.
        target: what it should be, or None where nothing says so.
        met: whether ``value`` is; ``verdict`` says whether the whole range is.
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
    """Return five significant digits: more than is shown, so that a verdict is not one of rounding."""
    return float(f"{value:.5g}") if math.isfinite(value) else value


def verdict(record: Mapping[str, Any]) -> Verdict | None:
    """Return what a record's range says of its limit, None where it has none.

    The range is open where the limit lies in it, its ends included: its digits do not say on which side an end lies
    that is equal to the limit. A figure without a range has no noise, and is never open.
    """
    if record["met"] is None:
        return None
    limit = float(record["target"].rpartition(" ")[2])
    if record["low"] < record["high"] and record["low"] <= limit <= record["high"]:
        return "open"
    return "met" if record["met"] else "missed"


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
    published = folder.resolve() == FOLDER.resolve()
    page = render(records, TARGETS, FIGURES) if published else render(records)
    (folder / PAGE).write_text(page, encoding="utf-8")


def keep(part: Iterable[Record], folder: Path) -> Iterator[Record]:
    """Yield a part's records, each once it is in the files; at the end its old ones that did not come are gone."""
    new = []
    for record in part:
        new.append(record)
        write(merged(read(folder), [record]), folder)
        yield record
    write(complete(read(folder), new), folder)


def render(
    records: Sequence[Mapping[str, Any]], targets: Expected | None = None, figures: Expected | None = None
) -> str:
    """Return the page: how many targets are met, for each hardware its targets and figures, and what is not measured.

    Args:
        targets, figures: what should be there, by command: ``expected``. None is missed without them.
    """
    judged = [r for r in records if r["kind"] == "target"]
    no_targets = missing(targets or {}, (r["name"] for r in judged))
    no_figures = missing(figures or {}, (r["name"] for r in records))
    by_median = sum(r["met"] for r in judged)
    unmeasured = sum(map(len, no_targets.values()))
    lines = [
        "# Speed",
        "",
        "Written by `python -m benchmarks.speed` (`make bench`) and `python -m benchmarks.gpu` (`make bench-gpu`)",
        "from results.json; a part is made anew by the command beside it, and the others stand as they are. Figures",
        "of time are ratios of times taken in turns in one run, where no unit is named: the median of the turns, and",
        "their range. Those of memory are exact: the running total of torch's allocator. docs/lab-notes.md says why",
        "they are so; growth.png shows what grows with what, load/open_loop.md the server past its capacity.",
        "",
        f"Targets: {len(judged) + unmeasured}. {_counts(judged)} Not measured yet: {unmeasured}.",
        "",
        "A target is open where its limit lies within the range of the turns. By the medians alone,",
        f"{by_median} of the {len(judged)} measured are met. What was merely measured is counted apart,",
        "growth and sizes too, which are compared with what arithmetic says that they must be.",
    ]
    for hardware in dict.fromkeys(r["hardware"] for r in records):
        own = [r for r in records if r["hardware"] == hardware]
        first = {part: i for i, part in enumerate(dict.fromkeys(part_of(r["name"]) for r in own))}
        own.sort(key=lambda r: first[part_of(r["name"])])
        lines += ["", f"## {hardware}", "", *_parts(own)]
        own_targets = [r for r in own if r["kind"] == "target"]
        if own_targets:
            lines += ["", f"### Targets measured: {len(own_targets)}", "", _counts(own_targets), ""]
            lines += [
                "| part | what | value | range | to | target | |",
                "| --- | --- | ---: | ---: | --- | --- | --- |",
            ]
            lines += [f"| {part_of(r['name'])} {_row(r, 'met', '**missed**')}" for r in own_targets]
        others = [r for r in own if r["kind"] != "target"]
        checked = Counter(verdict(r) for r in others if r["kind"] == "check")
        if others:
            holds = f"; {checked['met']} of {checked.total()} as arithmetic says" if checked else ""
            holds += f", {checked['open']} open" if checked["open"] else ""
            lines += ["", f"### Measured beside them: {len(others)} figures{holds}"]
        for part in dict.fromkeys(part_of(r["name"]) for r in others):
            lines += ["", f"#### {part}", ""]
            lines += ["| what | value | range | to | arithmetic says | |", "| --- | ---: | ---: | --- | --- | --- |"]
            lines += [_row(r, "so it is", "**not so**") for r in others if part_of(r["name"]) == part]
    return "\n".join([*lines, *_unmeasured(no_targets, no_figures)]) + "\n"


def _counts(judged: Sequence[Mapping[str, Any]]) -> str:
    """Return sentences on how many targets are met, missed and open."""
    count = Counter(verdict(r) for r in judged)
    by_median = sum(r["met"] for r in judged if verdict(r) == "open")
    how = f" (by the median {by_median} met, {count['open'] - by_median} missed)" if count["open"] else ""
    return f"Met in every turn: {count['met']}. Missed in every turn: {count['missed']}. Open: {count['open']}{how}."


def _unmeasured(targets: Mapping[str, Sequence[str]], figures: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the table of what no machine has measured, by command."""
    named = [(command, "target", name) for command, names in targets.items() for name in names]
    named += [(command, "figure", name) for command, names in figures.items() for name in names]
    if not named:
        return []
    lines = ["", "## Not measured yet", "", "| part | what | kind | command |", "| --- | --- | --- | --- |"]
    for command, kind, name in named:
        lines.append(f"| {part_of(name)} | {name.partition(':')[2].strip()} | {kind} | `{command}` |")
    return lines


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
    words = "" if record["met"] is None else (right if record["met"] else wrong)
    if verdict(record) == "open":
        words = f"open; {words} by the median"
    what = record["name"].partition(":")[2].strip()
    spread = f"{record['low']:.3g} to {record['high']:.3g}"
    return f"| {what} | {record['value']:.3g} | {spread} | {record['baseline']} | {record['target'] or ''} | {words} |"
