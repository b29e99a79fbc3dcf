"""The rows of JSON Lines, CSV or Parquet, in windows that are batched together, and in blocks of windows.

The source alone decides where windows and blocks begin, never the workers. So every row is in the same batch however
many workers there are, and has the same answer to the last bit on processors of one kind.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from laplora.data import lines as json_lines
from laplora.data.lines import Row
from laplora.data.parquet import parquet_file, parquet_rows
from laplora.data.records import csv_records, format_of
from laplora.errors import DataError
from laplora.remote.places import absolute, place_of

#: A window ends with the row by which it has so many bytes, however few rows it has then.
WINDOW_BYTES = 16 << 20
#: Blocks of a source, about, at most: one is one file beside the output.
MOST_BLOCKS = 8192


class Block(NamedTuple):
    """Consecutive windows.

    Attributes:
        number: from 0; first: number of the line, or of a table's row, that it begins with, from 1.
        begin, end: where it is, in bytes; of a table in rows from 0.
    """

    number: int
    first: int
    begin: int
    end: int


@dataclass(frozen=True)
class Source:
    """A file of rows, by its ending.

    Attributes:
        place: path or URL; version: which version is read, as of ``laplora.remote.places``.
        window: rows of a window, at most.
        columns: columns that are read of a table; None: all.
    """

    place: str
    version: str
    window: int
    columns: tuple[str, ...] | None = None

    @classmethod
    def at(cls, place: str | Path, window: int, columns: Sequence[str] | None = None) -> Source:
        """Return the source at a path or URL.

        Raises:
            DataError: an ending of no format, or nothing there; ConfigError: a URL that cannot be used.
        """
        format_of(place)
        try:
            version = place_of(place).version()
        except FileNotFoundError:
            raise DataError(f"{place}: there is no such file") from None
        return cls(absolute(place), version, window, None if columns is None else tuple(columns))

    def open(self) -> BinaryIO:
        """Return the file; DataError: it was changed."""
        return place_of(self.place).open(self.version)

    def blocks(self) -> list[Block]:
        """Return its blocks in order; text is read through once. DataError: changed meanwhile, or of no such format."""
        places = self._line_blocks() if format_of(self.place) == "jsonl" else self._table_blocks()
        return [Block(number, *place) for number, place in enumerate(places)]

    def windows(self, block: Block) -> Iterator[list[Row]]:
        """Yield the rows of a block that are not blank, a window at a time; errors as of ``blocks``."""
        rows = self._lines(block) if format_of(self.place) == "jsonl" else self._table_rows(block)
        return windows(rows, self.window)

    def _line_blocks(self) -> Iterator[tuple[int, int, int]]:
        with self.open() as file:
            fewest_bytes = file.seek(0, io.SEEK_END) // MOST_BLOCKS
            file.seek(0)
            first, begin, end = 1, 0, 0
            for window in windows(json_lines.lines(file), self.window):
                if (end := file.tell()) - begin >= fewest_bytes:
                    yield first, begin, end
                    first, begin = window[-1][0] + 1, end
            if end > begin:
                yield first, begin, end

    def _lines(self, block: Block) -> Iterator[Row]:
        with self.open() as file:
            file.seek(block.begin)
            yield from json_lines.lines(file, before=block.first - 1, end=block.end)

    def _table_blocks(self) -> list[tuple[int, int, int]]:
        if format_of(self.place) == "parquet":
            with self.open() as file, parquet_file(file, self.place) as table:
                count = table.metadata.num_rows
        else:
            count = len(_csv_rows(self))
        size = self.window * max(1, -(-count // (self.window * MOST_BLOCKS)))
        return [(begin + 1, begin, min(begin + size, count)) for begin in range(0, count, size)]

    def _table_rows(self, block: Block) -> Iterator[Row]:
        if format_of(self.place) != "parquet":
            yield from _csv_rows(self)[block.begin : block.end]
            return
        with self.open() as file, parquet_file(file, self.place) as table:
            rows = parquet_rows(table, block.begin, block.end, self.columns)
            yield from ((number, _json(values, None)) for number, values in enumerate(rows, block.first))


@lru_cache(maxsize=1)
def _csv_rows(source: Source) -> list[Row]:
    """Return the rows of a CSV file, which has no places where it can be cut: it is in memory as a whole."""
    with source.open() as file:
        records = csv_records(source.place, file, format_of(source.place))
    return [(record.line, _json(record.values, source.columns)) for record in records]


def _json(values: Mapping[str, Any], columns: Sequence[str] | None) -> bytes:
    """Return some columns of a row as JSON, of those that have a value, and no more of it than of a line."""
    row = json.dumps({k: v for k, v in values.items() if v is not None and (columns is None or k in columns)})
    return row.encode()[: json_lines.LINE_BYTES + 1]


def windows(rows: Iterable[Row], most: int) -> Iterator[list[Row]]:
    """Yield rows a window at a time: ``most`` of them, or fewer that have ``WINDOW_BYTES``."""
    window, size = [], 0
    for row in rows:
        window.append(row)
        size += len(row[1])
        if len(window) == most or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window
