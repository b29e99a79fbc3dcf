"""The committed figures: docs/results/evidence.json, and beside it the resamples of every unit's differences.

Both hold what was published so far. A unit that is published again takes its own place, others stay, so that several
machines can each run a part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.evidence.scores import Record, Scored
from laplora.files import write_tensors, write_whole

RECORDS = Path("docs") / "results" / "evidence.json"
RESAMPLED = Path("docs") / "results" / "evidence_resampled.safetensors"

#: Task, budget, seed and style.
Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class Results:
    """All committed figures.

    Attributes:
        records: in the order of their fields.
        resampled: by unit and method (metrics, resamples) float16, as ``Scored``.
    """

    records: Sequence[Record]
    resampled: dict[Key, dict[str, torch.Tensor]]


def key(record: Record) -> Key:
    """Return the unit of a record."""
    return record["task"], record["budget"], record["seed"], record["style"]


def read_results(records: Path = RECORDS, resampled: Path = RESAMPLED) -> Results:
    """Return what is committed; nothing where there is no file."""
    found: dict[Key, dict[str, torch.Tensor]] = {}
    if resampled.is_file():
        with safe_open(resampled, framework="pt") as handle:
            names = handle.metadata() or {}
            for text in handle.keys():  # noqa: SIM118  a handle is no mapping
                task, budget, seed, style = text.split("/")
                values = handle.get_tensor(text)
                found[task, int(budget), int(seed), style] = dict(zip(names[text].split(), values, strict=True))
    return Results(json.loads(records.read_text(encoding="utf-8")) if records.is_file() else [], found)


def publish(scored: Iterable[Scored], records: Path = RECORDS, resampled: Path = RESAMPLED) -> Results:
    """Put units in their place among the committed figures, write both files, and return all."""
    before = read_results(records, resampled)
    kept: dict[Key, list[Record]] = {}
    for record in before.records:
        kept.setdefault(key(record), []).append(record)
    arrays = dict(before.resampled)
    for one in scored:
        training = one.unit.training
        place = (training.task, training.budget, training.seed, one.unit.style)
        kept[place] = one.records
        arrays[place] = {name: values.half() for name, values in one.resampled.items()}
    every = [record for _, of_unit in sorted(kept.items()) for record in of_unit]
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in every)
    write_whole(records, f"[\n{lines}\n]\n")
    names = {"/".join(map(str, place)): " ".join(values) for place, values in sorted(arrays.items())}
    tensors = {
        "/".join(map(str, place)): torch.stack(list(values.values())) for place, values in sorted(arrays.items())
    }
    write_tensors(resampled, tensors, names)
    return Results(every, arrays)
