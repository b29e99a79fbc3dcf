"""Parquet files of any size: rows as JSON has them, a batch of a bounded size in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from laplora.errors import DataError, first_line, needs

#: Rows of a batch have about so many bytes, at most.
BATCH_BYTES = 16 << 20
#: Rows of a batch, at most.
_BATCH_ROWS = 1024


@contextmanager
def parquet_file(file: BinaryIO, place: Path | str) -> Iterator[Any]:
    """Open a file as ``pyarrow.parquet.ParquetFile`` inside the block.

    Args:
        place: what errors call it.

    Raises:
        ConfigError: pyarrow is not installed; DataError: no Parquet, or, in the block, what cannot be read of it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise needs("parquet", error) from None
    try:
        yield pyarrow.parquet.ParquetFile(file, pre_buffer=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{place}: cannot be read as Parquet ({first_line(error)})") from None


def parquet_rows(
    table: Any, begin: int = 0, end: int | None = None, columns: Collection[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a ``ParquetFile`` from ``begin`` to before ``end``, from 0; what is no JSON value as ``plain``.

    Args:
        end: None: all that follow; columns: those that are read; None: all.
    """
    end = table.metadata.num_rows if end is None else end
    groups, place, after = [], 0, 0
    for group in range(table.metadata.num_row_groups):
        first, after = after, after + table.metadata.row_group(group).num_rows
        if after <= begin:
            place = after
        elif first < end:
            groups.append(group)
    names = [name for name in table.schema_arrow.names if columns is None or name in columns]
    for batch in table.iter_batches(_batch_rows(table, groups, names), groups, names, use_threads=False):
        first, last = max(begin - place, 0), min(end - place, batch.num_rows)
        for row in batch.slice(first, max(0, last - first)).to_pylist():
            yield {name: plain(value) for name, value in row.items()}
        place += batch.num_rows
        if place >= end:
            return


def _batch_rows(table: Any, groups: list[int], columns: Collection[str]) -> int:
    """Return how many rows of row groups have about ``BATCH_BYTES`` in some columns; at least 1."""
    row_bytes = 1.0
    for group in map(table.metadata.row_group, groups):
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
        row_bytes = max(row_bytes, size / max(1, group.num_rows))
    return max(1, min(_BATCH_ROWS, int(BATCH_BYTES / row_bytes)))


def plain(value: Any) -> Any:
    """Return a cell's value as JSON has it, else as text: dates, decimals and bytes. No number is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return {str(k): plain(v) for k, v in value.items()} if isinstance(value, dict) else str(value)
