"""Parquet files as numbered records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laplora.errors import DataError, first_line
from training.data.tables import Record


def parquet_records(path: Path) -> list[Record]:
    """Return the rows of a Parquet file, numbered from 1; what is no JSON value, as a date, comes as its text.

    Raises:
        DataError: no such file, or none that can be read as Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:  # by its path a folder would be read too, as one table of all its files
            rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)})") from None
    return [Record(number, {k: plain(v) for k, v in row.items()}) for number, row in enumerate(rows, 1)]


def plain(value: Any) -> Any:
    """Return a cell's value as JSON has it, else as text."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return {str(k): plain(v) for k, v in value.items()} if isinstance(value, dict) else str(value)
