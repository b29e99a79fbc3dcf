"""The options of ``python -m training suggest``: a command line as one value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SuggestRequest:
    """The options of ``python -m training suggest``.

    Attributes:
        artifact: folder; pool: JSON Lines, CSV or Parquet file of rows with the fields of its template.
        out: JSON Lines file; None: POOL.suggested.jsonl, unless that is there already.
        count: rows that are to be labelled.
        least_familiarity: rows of less (``Prediction.familiarity``) are left out, where the artifact has one.
    """

    artifact: Path
    pool: Path
    out: Path | None = None
    count: int = 100
    device: str = "auto"
    batch_size: int = 8
    least_familiarity: float = 0.0


def add_options(job: argparse.ArgumentParser) -> None:
    """Give a command line the options of the job."""
    job.add_argument("--artifact", type=Path, required=True, help="folder of the artifact")
    job.add_argument(
        "--pool", type=Path, required=True, help="JSON Lines, CSV or Parquet file of rows; labels are ignored"
    )
    job.add_argument("--out", type=Path, help="JSON Lines file to write (default: POOL.suggested.jsonl, if it is new)")
    job.add_argument("--n", "--count", type=int, default=100, dest="count", help="rows to label (default: 100)")
    job.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    job.add_argument("--batch-size", type=int, default=8, help="rows that run together (default: 8)")
    least = "leave out rows of less familiarity, where the artifact has one, from 0 to 1 (default: 0, none)"
    job.add_argument("--least-familiarity", type=float, default=0.0, help=least)


def request_of(options: argparse.Namespace) -> SuggestRequest:
    """Return what the command line asks for."""
    return SuggestRequest(**{name: getattr(options, name) for name in SuggestRequest.__dataclass_fields__})
