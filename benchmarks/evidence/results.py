"""The committed figures: docs/results/evidence.json, and beside it the resamples of every unit's differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

RECORDS = Path("docs") / "results" / "evidence.json"
RESAMPLED = Path("docs") / "results" / "evidence_resampled.safetensors"

#: What every method is compared with.
REFERENCE = "temperature"
#: Bootstrap resamples of the rows that are kept of each unit and method.
RESAMPLES = 128
#: The metrics that methods are compared by.
METRICS = ("nll", "aurc")

#: One method's figures on one draw.
Record = dict[str, Any]
#: Task, budget, seed and style.
Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class Results:
    """All committed figures.

    Attributes:
        records: in the order of their fields.
        resampled: by unit and method (METRICS, RESAMPLES) float16: the difference from temperature scaling, mean over
            draws, on resampled rows.
    """

    records: Sequence[Record]
    resampled: dict[Key, dict[str, torch.Tensor]]


def key(record: Record) -> Key:
    """Return the unit of a record."""
    return record["task"], record["budget"], record["seed"], record["style"]


def read_results(records: Path = RECORDS, resampled: Path = RESAMPLED) -> Results:
    """Return what is committed."""
    found: dict[Key, dict[str, torch.Tensor]] = {}
    with safe_open(resampled, framework="pt") as handle:
        for text, names in handle.metadata().items():
            task, budget, seed, style = text.split("/")
            values = handle.get_tensor(text)
            found[task, int(budget), int(seed), style] = dict(zip(names.split(), values, strict=True))
    return Results(json.loads(records.read_text(encoding="utf-8")), found)
