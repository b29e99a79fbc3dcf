"""RESULTS.md, made of the records of results.json alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from training.report.markdown import markdown_table

PAGE = "RESULTS.md"
Records = Sequence[Mapping[str, Any]]
#: The verdict of the turns on a limit: all of them alike, or not.
Verdict = Literal["met", "missed", "open"]
_HEAD = """# Speed

`python -m benchmarks.speed` (`make bench`) and, of a GPU, `make gpu` with `python -m benchmarks.gpu --publish FILE`
write this page from results.json. `python -m benchmarks.speed --only PART` measures one part anew. A time without a
unit is a ratio of times taken in turns in one run. A figure is the median of the turns, with their range. Memory is
exact: the running total of torch's allocator.

Targets: {targets}. {counts}{unmeasured} A target is open if its limit lies within the range of the turns. The
median's verdict is then in brackets.
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
        unmeasured="" if gpu else " `make gpu` has not run on a GPU yet.",
    )
    parts = [head]
    for hardware in dict.fromkeys(r["hardware"] for r in records):
        parts += _hardware(hardware, [r for r in records if r["hardware"] == hardware])
    return "\n".join(parts)


def _hardware(hardware: str, records: Records) -> list[str]:
    """Return a machine's blocks: what was measured when, and a table for each part."""
    by_part: dict[str, list[Mapping[str, Any]]] = {}
    for r in records:
        by_part.setdefault(part_of(r["name"]), []).append(r)
    blocks = [f"## {hardware}\n", _origins(by_part)]
    for part, of_part in by_part.items():
        unit = Counter(r["baseline"] for r in of_part).most_common(1)[0][0]
        blocks.append(f"### {part}\nThe unit is {unit}, if a figure names no other.\n")
        heading = ["what", "value", "range", "target", "verdict"]
        blocks.append(markdown_table(heading, [_row(r, unit) for r in of_part], left=(0, 3, 4)))
    return blocks


def _origins(by_part: Mapping[str, Records]) -> str:
    """Return the table of what was measured when and from what, parts of one origin in one row; then all versions."""
    keys = ("date", "commit", "artifact", "threads")
    parts: dict[tuple[str, ...], list[str]] = {}
    for part, of_part in by_part.items():
        for origin in dict.fromkeys(tuple(r["measured"].get(key, "") for key in keys) for r in of_part):
            parts.setdefault(origin, []).append(part)
    every = [r["measured"].get("versions", "").split(", ") for of_part in by_part.values() for r in of_part]
    versions = ", ".join(dict.fromkeys(version for of in every for version in of if version))
    table = markdown_table(["parts", *keys], [[", ".join(of), *origin] for origin, of in parts.items()], left=range(5))
    return f"{table}\nVersions: {versions}.\n"


def _counts(judged: Records) -> str:
    """Return sentences on how many targets are met, missed and open."""
    count = Counter(verdict(r) for r in judged)
    by_median = sum(r["met"] for r in judged if verdict(r) == "open")
    how = f" (by the median {by_median} met, {count['open'] - by_median} missed)" if count["open"] else ""
    return f"Met in every turn: {count['met']}. Missed in every turn: {count['missed']}. Open: {count['open']}{how}."


def _row(record: Mapping[str, Any], unit: str) -> list[str]:
    """Return the cells of a record; its unit is beside the value if it is another than its part's."""
    words = {True: "met", False: "**missed**", None: ""}[record["met"]]
    if verdict(record) == "open":
        words = f"open ({words})"
    value = f"{record['value']:.3g}" + ("" if record["baseline"] == unit else f" {record['baseline']}")
    spread = f"{record['low']:.3g}–{record['high']:.3g}" if record["low"] < record["high"] else ""
    target = (record["target"] or "").replace("at most ", "≤").replace("at least ", "≥")
    return [record["name"].partition(":")[2].strip(), value, spread, target, words]
