"""The rows of JSON Lines or Parquet, in windows that are batched together, and in blocks of windows.

Where windows and blocks begin depends on the source alone, never on who works on them. So every row is in the same
batch however many workers there are, and has the same answer to the last bit on processors of one kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from laplora.bulk.folders import absolute, changed, place_of
from laplora.errors import DataError, first_line, needs

#: Longest line, in bytes.
LINE_BYTES = 8 << 20
#: A window ends with the row by which it has so many bytes, however few rows it has then.
WINDOW_BYTES = 16 << 20
#: Blocks of a source, at most: one is one file beside the output.
MOST_BLOCKS = 8192
_ENDINGS = (".jsonl", ".ndjson", ".parquet")
_MARK = b"\xef\xbb\xbf"

#: Number of a row, from 1 (of JSON Lines: of its line), and its JSON.
Row = tuple[int, bytes]


class Block(NamedTuple):
    """Consecutive windows.

    Attributes:
        number: from 0; first: number of the line, or of Parquet's row, that it begins with, from 1.
        begin, end: where it is, in bytes; of Parquet in rows from 0.
    """

    number: int
    first: int
    begin: int
    end: int


@dataclass(frozen=True)
class Source:
    """A file of rows, by its ending: ``.jsonl``, ``.ndjson`` or ``.parquet``.

    Attributes:
        place: path or URL; version: which version is read, as of ``Folder.version``.
        window: rows of a window, at most.
        columns: columns that are read of Parquet; None: all.
    """

    place: str
    version: str
    window: int
    columns: tuple[str, ...] | None = None

    @classmethod
    def at(cls, place: str | Path, window: int, columns: Sequence[str] | None = None) -> Source:
        """Return the source at a path or URL.

        Raises:
            DataError: another ending, or nothing there; ConfigError: a URL that cannot be used.
        """
        ending = Path(str(place)).suffix.lower()
        if ending not in _ENDINGS:
            raise DataError(f"{place}: expected a file that ends in one of {_ENDINGS}, got {ending or 'none'}")
        folder, name = place_of(place)
        try:
            version = folder.version(name)
        except FileNotFoundError:
            raise DataError(f"{place}: there is no such file") from None
        return cls(absolute(place), version, window, None if columns is None else tuple(columns))

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, otherwise JSON Lines."""
        return self.place.lower().endswith(".parquet")

    def open(self) -> BinaryIO:
        """Return the file; DataError: it was changed."""
        folder, name = place_of(self.place)
        return folder.open(name, self.version)

    def identity(self) -> dict[str, Any]:
        """Return what says that the source is the same on another day."""
        folder, name = place_of(self.place)
        found = folder.identity(name)
        if folder.version(name) != self.version:
            raise changed(name)
        return found

    def blocks(self) -> list[Block]:
        """Return its blocks, ``MOST_BLOCKS`` at most, in order; JSON Lines are read through once.

        Raises:
            DataError: changed meanwhile, or no Parquet.
        """
        places = self._parquet_blocks() if self.is_parquet else self._line_blocks()
        return [Block(number, *place) for number, place in enumerate(places)]

    def windows(self, block: Block) -> Iterator[list[Row]]:
        """Yield the rows of a block that are not blank, a window at a time; errors as of ``blocks``."""
        return windows(self._parquet_rows(block) if self.is_parquet else self._lines(block), self.window)

    def _line_blocks(self) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        size = 1  # windows of a block
        with self.open() as file:
            first, begin, count, last = 1, 0, 0, 0
            for number, end in _window_ends(file, self.window):
                count, last = count + 1, end
                if count == size:
                    found.append((first, begin, end))
                    first, begin, count = number + 1, end, 0
                    if len(found) == MOST_BLOCKS:
                        pairs = zip(found[::2], found[1::2], strict=True)
                        found, size = [(one[0], one[1], two[2]) for one, two in pairs], 2 * size
            if count:
                found.append((first, begin, last))
        return found

    def _lines(self, block: Block) -> Iterator[Row]:
        with self.open() as file:
            file.seek(block.begin)
            yield from lines(file, before=block.first - 1, end=block.end)

    def _parquet_blocks(self) -> list[tuple[int, int, int]]:
        with self._parquet() as file:
            count, size = file.metadata.num_rows, self.window
        while -(-count // size) > MOST_BLOCKS:
            size *= 2
        return [(begin + 1, begin, min(begin + size, count)) for begin in range(0, count, size)]

    def _parquet_rows(self, block: Block) -> Iterator[Row]:
        with self._parquet() as file:
            groups, place = _groups(file, block)
            names = [name for name in file.schema_arrow.names if self.columns is None or name in self.columns]
            size = min(self.window, _rows_within(file, groups, set(names)))
            for batch in file.iter_batches(batch_size=size, row_groups=groups, columns=names, use_threads=False):
                begin, end = max(block.begin - place, 0), min(block.end - place, batch.num_rows)
                for number, values in enumerate(batch.slice(begin, max(0, end - begin)).to_pylist(), place + begin + 1):
                    yield number, _json(values)[: LINE_BYTES + 1]
                place += batch.num_rows
                if place >= block.end:
                    return

    @contextmanager
    def _parquet(self) -> Iterator[Any]:
        """Open the file as Parquet; what pyarrow cannot read is a DataError, also in the block."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ModuleNotFoundError as error:
            raise needs("service", error) from None
        with self.open() as raw:
            try:
                yield pyarrow.parquet.ParquetFile(raw, pre_buffer=False)
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(f"{self.place}: cannot be read as Parquet ({first_line(error)})") from None


def _groups(file: Any, block: Block) -> tuple[list[int], int]:
    """Return the row groups that a block is in, and the row that they begin with, from 0."""
    groups, first, begins = [], 0, 0
    for group in range(file.metadata.num_row_groups):
        after = first + file.metadata.row_group(group).num_rows
        if after <= block.begin:
            begins = after
        elif first < block.end:
            groups.append(group)
        first = after
    return groups, begins


def _rows_within(file: Any, groups: Sequence[int], columns: set[str]) -> int:
    """Return how many rows of row groups have about ``WINDOW_BYTES`` in some columns; at least 1."""
    most = 1.0
    for group in map(file.metadata.row_group, groups):
        chunks = (group.column(place) for place in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
        most = max(most, size / max(1, group.num_rows))
    return max(1, int(WINDOW_BYTES / most))


def _json(values: Mapping[str, Any]) -> bytes:
    """Return a row as JSON without what it has no value of: dates, decimals and bytes are their text."""
    return json.dumps({name: _plain(value) for name, value in values.items() if value is not None}).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else str(value)


def is_too_long(line: bytes) -> bool:
    """Return whether a line has more than ``LINE_BYTES``."""
    return len(line) > LINE_BYTES


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


def _window_ends(file: BinaryIO, most: int) -> Iterator[tuple[int, int]]:
    """Yield number and end, in bytes, of the last row of each window of lines, as ``windows`` cuts them."""
    rows = size = number = 0
    for number, line in lines(file):
        rows, size = rows + 1, size + len(line)
        if rows == most or size >= WINDOW_BYTES:
            yield number, file.tell()
            rows = size = 0
    if rows:
        yield number, file.tell()


def lines(file: BinaryIO, *, before: int = 0, end: int | None = None) -> Iterator[Row]:
    """Yield the lines that are not blank, by number; of one that is over ``LINE_BYTES`` its start alone.

    Args:
        before: lines that come before the first; end: where in the file to stop, in bytes; None: where it ends.
    """
    number = before
    while (end is None or file.tell() < end) and (line := file.readline(LINE_BYTES + 1)):
        number += 1
        if is_too_long(line) and not line.endswith(b"\n"):
            while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                continue
        if number == 1:
            line = line.removeprefix(_MARK)
        if line.strip():
            yield number, line
