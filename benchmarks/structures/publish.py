"""What is published: docs/results/structures.json, a record a variant, and the page made of it alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.structures.table import approximation_table
from laplora.errors import DataError
from laplora.files import write_whole
from training.report.markdown import fill

FILE = "structures.json"
COLUMNS = (
    *("task", "seed", "rows", "prior_precision", "structure", "rank", "joint_rank", "subset", "per_block"),
    *("correlation", "ratio", "nll_at_own_prior", "size_bytes", "adapter_bytes", "fit_seconds"),
    "predict_seconds_per_row",
)
Records = list[dict[str, Any]]


def publish(variants: Sequence[dict[str, Any]], docs: Path) -> list[Path]:
    """Put what ``compare`` returned of one task and seed in the place of what was there; return the files.

    Raises:
        DataError: something else, no or a damaged published file, or a page without the table's markers.
    """
    folder, page = docs / "results", docs / "results.md"
    text = page.read_text(encoding="utf-8")
    fill(text, "structures", {"approximation": ""})  # refused before anything is written
    places = {(r["task"], r["seed"]) for r in variants}
    others = [r for r in read_records(folder) if (r["task"], r["seed"]) not in places]
    records = checked(sorted([*others, *variants], key=lambda r: (r["task"], r["seed"])))
    lines = ",\n".join(json.dumps(_rounded(record), allow_nan=False) for record in records)
    write_whole(folder / FILE, f"[\n{lines}\n]\n")
    table = pd.DataFrame(read_records(folder), columns=list(COLUMNS))
    write_whole(page, fill(text, "structures", {"approximation": approximation_table(table)}))
    return [folder / FILE, page]


def read_records(folder: Path) -> Records:
    """Return what a folder holds; DataError for no file, or one that is not what this module writes."""
    path = folder / FILE
    try:
        return checked(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}: restore it from the repository") from None


def checked(records: Records) -> Records:
    """Return records whose columns are all there; DataError where one is missing, or one too many."""
    for number, record in enumerate(records):
        if wrong := sorted(set(record) ^ set(COLUMNS)):
            raise DataError(f"record {number}: missing or unknown: {', '.join(wrong)}")
    return records


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with every float at 6 significant digits."""
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}
