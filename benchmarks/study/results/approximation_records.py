"""What is published of the comparison of structures: ``approximation.json``, read, merged and written.

One record per task, seed and variant of the posterior: how its predictive variances agree with the exact GGN
posterior's, its size and its times. Floats have 6 significant digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from benchmarks.study.results.records import json_lines
from laplora.errors import DataError
from laplora.files import write_whole
from training.config import Section

FILE = "approximation.json"


class VariantRecord(Section):
    """One variant of the posterior on one task and seed, as ``benchmarks.study.compute.approximation.compare`` measures
    it.

    ``correlation`` is None where a variant has no variance to correlate, ``nll_at_own_prior`` where it has no prior
    of its own. Sizes in bytes, times in seconds, NLL in nats.
    """

    task: str
    seed: int
    rows: int
    prior_precision: float
    structure: str
    rank: int | None
    joint_rank: int | None
    subset: str
    per_block: bool
    correlation: float | None
    ratio: float
    nll_at_own_prior: float | None
    size_bytes: int
    adapter_bytes: int
    fit_seconds: float
    predict_seconds_per_row: float


def read_approximation(folder: Path) -> tuple[VariantRecord, ...]:
    """Return what a folder holds; nothing where nothing was published yet.

    Raises:
        DataError: a file that is not what this module writes.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        return TypeAdapter(tuple[VariantRecord, ...]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: {_first(error)}: publish the comparison again") from None


def merge_approximation(
    old: Sequence[VariantRecord], results: Iterable[Mapping[str, Any]]
) -> tuple[VariantRecord, ...]:
    """Return what was published with newly compared tasks and seeds in it, the same ones replaced whole.

    Args:
        results: as ``benchmarks.study.compute.approximation.compare`` returns them.

    Raises:
        DataError: results that are something else.
    """
    merged: dict[tuple[str, int], list[VariantRecord]] = {}
    for record in old:
        merged.setdefault((record.task, record.seed), []).append(record)
    for result in results:
        try:
            found = [VariantRecord.model_validate(_finite(v)) for v in result["variants"]]
            place = (str(result["task"]), int(result["seed"]))
        except ValidationError as error:
            raise DataError(f"a comparison of structures has {_first(error)}: run it again") from None
        except (KeyError, TypeError) as error:
            message = f"a comparison of structures lacks task, seed or variants: {error}: run it again"
            raise DataError(message) from None
        if not found or {(r.task, r.seed) for r in found} != {place}:
            raise DataError(f"a comparison of structures on {place[0]}, seed {place[1]} holds no or other variants")
        merged[place] = found
    return tuple(record for place in sorted(merged) for record in merged[place])


def write_approximation(records: Sequence[VariantRecord], folder: Path) -> Path:
    """Write the file, one record a line, and return its path; the same content gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json_lines(records) + "\n")
    return folder / FILE


def _finite(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measures with None for what could not be computed: JSON has no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in variant.items()}


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
