"""The record of a benchmark: a figure with its range, its target and its origin, kept in results.json."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.harness import provenance
from benchmarks.harness.page import PAGE, part_of, render, verdict
from benchmarks.harness.timing import Ratio

FOLDER = Path(__file__).parents[1]
RESULTS = "results.json"


@dataclass(frozen=True)
class Record:
    """One figure.

    Attributes:
        name: ``part: what``; a record of the same name and hardware is replaced.
        value, low, high: median of several turns, and their range.
        baseline: what ``value`` is a ratio to, or its unit.
        target: what it should be; ``met``: whether ``value`` is. None where it is only measured.
        hardware: processor and cores, or GPU.
        measured: date, commit, artifact, command, threads and versions.
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

    @property
    def line(self) -> str:
        """The record as a line of the console."""
        words = "" if self.met is None else (" met" if self.met else " MISSED")
        if verdict(asdict(self)) == "open":
            words = f" open,{words} by the median"
        target = f" (target {self.target})" if self.target else ""
        return f"{self.name}: {self.value} [{self.low} to {self.high}] x {self.baseline}{target}{words}"


@dataclass(frozen=True)
class Conditions:
    """The machine and time of a benchmark, and the folder of its figures and other files."""

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
    ) -> Record:
        """Return a figure with its verdict; ``side``: of the limit on which it should be."""
        met = None if limit is None else (ratio.value <= limit if side == "at most" else ratio.value >= limit)
        target = None if limit is None else f"{side} {limit:.4g}"
        digits = (_digits(v) for v in asdict(ratio).values())
        return Record(name, *digits, baseline, target, met, self.hardware, self.measured)

    def with_versions(self, *packages: str) -> Conditions:
        """Return the same with further packages' versions, of those that are installed."""
        known = [self.measured["versions"], provenance.versions(packages)]
        return replace(self, measured={**self.measured, "versions": ", ".join(filter(None, known))})


def conditions_here(
    arguments: Sequence[str] | None, *, module: str = "benchmarks.speed", hardware: str | None = None
) -> Conditions:
    """Return this moment, and this machine unless another name for it is given; no arguments: the command line's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    measured = {
        "date": provenance.today(),
        "commit": provenance.commit(),
        "artifact": provenance.artifact(),
        "command": shlex.join(["python", "-m", module, *arguments]),
        "threads": str(torch.get_num_threads()),
        "versions": provenance.versions(("torch", "transformers", "peft", "bitsandbytes")),
    }
    return Conditions(hardware or provenance.hardware(), measured)


def _digits(value: float) -> float:
    """Return five significant digits: more than is shown, so that a verdict is not one of rounding."""
    return float(f"{value:.5g}") if math.isfinite(value) else value


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a folder, none where it has none."""
    path = folder / RESULTS
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def write(records: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write ``results.json`` and the page that is made of it."""
    records = list(records)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_text(json.dumps(records, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(render(records), encoding="utf-8")


def keep(part: Iterable[Record], folder: Path) -> Iterator[Record]:
    """Yield a part's records, each once it is in the files.

    A record takes the place of the same name and hardware. At the end, old records of these parts on this hardware that
    were not measured again are gone.
    """
    new: set[tuple[str, str]] = set()
    for record in part:
        new.add((record.name, record.hardware))
        kept = {(r["name"], r["hardware"]): r for r in read(folder)}
        write((kept | {(record.name, record.hardware): asdict(record)}).values(), folder)
        yield record
    parts = {(part_of(name), hardware) for name, hardware in new}
    old = [r for r in read(folder) if (part_of(r["name"]), r["hardware"]) in parts]
    gone = {(r["name"], r["hardware"]) for r in old} - new
    write((r for r in read(folder) if (r["name"], r["hardware"]) not in gone), folder)
