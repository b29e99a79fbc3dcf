"""What is published of the study: study.json, from which every table and plot is made.

A key is a table, one record a line:

    tasks        sizes, steps, caps, seeds, machines; NLL of what is recommended against MAP and temperature scaling
    methods      name, title and family, in the order to show them
    scores       one method on one task and seed: metrics (NLL in nats, ECE over 15 bins), seconds and bytes
    comparisons  NLL of a method less that of MAP or temperature scaling, pooled over the seeds that have both
    seeds        what one task and seed recommends, its prediction sets, rankings of mistakes and reliability bins
    ensembles    averages over a task's seeds
    variants     one variant of the posterior against the exact one, on one task and seed

Floats have 6 significant digits; intervals are (value, low, high) at 95 %.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from laplora.errors import DataError
from laplora.files import write_whole

FILE = "study.json"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "tasks": (
        *("task", "digest", "classes", "train_rows", "calibration_rows", "rows", "steps", "configuration", "capped"),
        *("seeds", "hardware", "versions", "gap", "against_map", "against_temperature"),
    ),
    "methods": ("method", "title", "family"),
    "scores": (
        *("task", "seed", "method", "nll", "ece", "accuracy", "brier", "auroc_error", "recommended"),
        *("seconds", "size_bytes", "option_orders"),
    ),
    "comparisons": ("task", "method", "against", "difference", "low", "high", "seeds"),
    "seeds": (
        *("task", "seed", "recommended", "reason", "review_score", "review_auroc", "map_entropy_auroc"),
        *("conformal", "rankings", "map_bins", "recommended_bins"),
    ),
    "ensembles": (
        *("task", "method", "seeds", "nll", "ece", "auroc_error", "auroc_disagreement", "member_nll", "member_auroc"),
        "against_laplace",
    ),
    "variants": (
        *("task", "seed", "rows", "prior_precision", "structure", "rank", "joint_rank", "subset", "per_block"),
        *("correlation", "ratio", "nll_at_own_prior", "size_bytes", "adapter_bytes", "fit_seconds"),
        "predict_seconds_per_row",
    ),
}
#: Methods that every other one is compared with.
REFERENCES = ("map", "temperature")
Records = dict[str, list[dict[str, Any]]]
Tables = Mapping[str, pd.DataFrame]


def read_records(folder: Path) -> Records:
    """Return what a folder holds.

    Raises:
        DataError: no file, or one that is not what this module writes.
    """
    path = folder / FILE
    try:
        records = checked(json.loads(path.read_bytes()))
    except (OSError, DataError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: {error}: publish the study again") from None
    return {name: records[name] for name in COLUMNS}


def checked(records: Records) -> Records:
    """Return records whose tables and columns are all there; DataError where one is missing, or one too many."""
    if set(records) != set(COLUMNS):
        raise DataError(f"tables {sorted(records)}, expected {sorted(COLUMNS)}")
    for name, columns in COLUMNS.items():
        for number, record in enumerate(records[name]):
            if wrong := sorted(set(record) ^ set(columns)):
                raise DataError(f"{name}, record {number}: missing or unknown: {', '.join(wrong)}")
    return records


def tables_of(records: Records) -> Tables:
    """Return records as data frames by table; what was not measured is NaN or None."""
    return {name: pd.DataFrame(records[name], columns=list(columns)) for name, columns in COLUMNS.items()}


def write_records(records: Records, folder: Path) -> Path:
    """Write the file and return its path; the same records give the same bytes."""
    parts = []
    for name, rows in checked(records).items():
        lines = ",\n".join(json.dumps(rounded(row), ensure_ascii=False, allow_nan=False) for row in rows)
        parts.append(f'"{name}": [\n{lines}\n]' if rows else f'"{name}": []')
    write_whole(folder / FILE, "{" + ",\n".join(parts) + "}\n")
    return folder / FILE


def rounded(value: Any) -> Any:
    """Return a JSON value with every float at 6 significant digits, and None for one that is not finite."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value
