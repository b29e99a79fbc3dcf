"""RESULTS.md, made of the records of results.json alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from training.report.markdown import markdown_table

PAGE = "RESULTS.md"
Records = Sequence[Mapping[str, Any]]
#: What the turns say of a limit: all of them alike, or not.
Verdict = Literal["met", "missed", "open"]
_HEAD = """# Speed

Written by `python -m benchmarks.speed` (`make bench`) and `python -m benchmarks.gpu` (`make bench-gpu`) from
results.json; a part is made anew by `python -m benchmarks.speed --only PART`, and the others stand as they are. Figures
of time are ratios of times taken in turns in one run, where no unit is named: the median of the turns, and their range.
Those of memory are exact: the running total of torch's allocator.

Targets: {targets}. {counts}{unmeasured}

A target is open where its limit lies within the range of the turns. By the medians alone, {by_median} of the {judged}
measured are met. What was merely measured is counted apart.
"""


def verdict(record: Mapping[str, Any]) -> Verdict | None:
    """Return what a record's range says of its limit: open where the limit lies in it, None where there is none."""
    if record["met"] is None:
        return None
    limit = float(record["target"].rpartition(" ")[2])
    if record["low"] < record["high"] and record["low"] <= limit <= record["high"]:
        return "open"
    return "met" if record["met"] else "missed"


def part_of(name: str) -> str:
    """Return the part of a record's name."""
    return name.partition(":")[0]


def render(records: Records) -> str:
    """Return the page: how many targets are met, then for each hardware its targets and its other figures."""
    judged = [r for r in records if r["target"]]
    gpu = any(r["name"].startswith("gpu, ") for r in records)
    head = _HEAD.format(
        targets=len(judged),
        counts=_counts(judged),
        unmeasured="" if gpu else " `python -m benchmarks.gpu` has not run on a GPU yet.",
        by_median=sum(r["met"] for r in judged),
        judged=len(judged),
    )
    parts = [head]
    for hardware in dict.fromkeys(r["hardware"] for r in records):
        parts += _hardware(hardware, [r for r in records if r["hardware"] == hardware])
    return "\n".join(parts)


def _hardware(hardware: str, records: Records) -> list[str]:
    """Return a machine's blocks: what was measured when, its targets, and its other figures by part."""
    by_part: dict[str, list[Mapping[str, Any]]] = {}
    for r in records:
        by_part.setdefault(part_of(r["name"]), []).append(r)
    blocks = [f"## {hardware}\n", _origins(by_part)]
    targets = [r for of_part in by_part.values() for r in of_part if r["target"]]
    others = {part: [r for r in of_part if not r["target"]] for part, of_part in by_part.items()}
    if targets:
        rows = [[part_of(r["name"]), *_row(r)] for r in targets]
        heading = ["part", "what", "value", "range", "to", "target", ""]
        blocks += [f"### Targets measured: {len(targets)}\n", _counts(targets) + "\n"]
        blocks.append(markdown_table(heading, rows, left=(0, 1, 4, 5, 6)))
    if count := sum(map(len, others.values())):
        blocks.append(f"### Measured beside them: {count} figures\n")
    for part, of_part in others.items():
        if of_part:
            rows = [_row(r)[:4] for r in of_part]
            blocks += [f"#### {part}\n", markdown_table(["what", "value", "range", "to"], rows, left=(0, 3))]
    return blocks


def _origins(by_part: Mapping[str, Records]) -> str:
    """Return the table of what was measured when and from what: parts of one origin in one row."""
    keys = ("date", "commit", "artifact", "threads", "versions")
    parts: dict[tuple[str, ...], list[str]] = {}
    for part, of_part in by_part.items():
        for origin in dict.fromkeys(tuple(r["measured"].get(key, "") for key in keys) for r in of_part):
            parts.setdefault(origin, []).append(part)
    return markdown_table(["parts", *keys], [[", ".join(of), *origin] for origin, of in parts.items()], left=range(6))


def _counts(judged: Records) -> str:
    """Return sentences on how many targets are met, missed and open."""
    count = Counter(verdict(r) for r in judged)
    by_median = sum(r["met"] for r in judged if verdict(r) == "open")
    how = f" (by the median {by_median} met, {count['open'] - by_median} missed)" if count["open"] else ""
    return f"Met in every turn: {count['met']}. Missed in every turn: {count['missed']}. Open: {count['open']}{how}."


def _row(record: Mapping[str, Any]) -> list[str]:
    words = "met" if record["met"] else "**missed**"
    if verdict(record) == "open":
        words = f"open; {words} by the median"
    spread = f"{record['low']:.3g} to {record['high']:.3g}"
    what = record["name"].partition(":")[2].strip()
    return [what, f"{record['value']:.3g}", spread, record["baseline"], record["target"] or "", words]
