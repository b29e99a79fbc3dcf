"""JSON Lines of any size: lines by number, one of a bounded size in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from laplora.data.records import MARK, RowError, decoded, json_record

#: Longest line, in bytes.
LINE_BYTES = 8 << 20

#: Number of a row, from 1 (of text: of its line), and its JSON.
Row = tuple[int, bytes]


def lines(file: BinaryIO, *, before: int = 0, end: int | None = None) -> Iterator[Row]:
    """Yield the lines that are not blank, by number; of one that is over ``LINE_BYTES`` its start alone.

    Args:
        before: lines that come before the first; end: where in the file to stop, in bytes; None: where it ends.
    """
    number = before
    while (end is None or file.tell() < end) and (line := file.readline(LINE_BYTES + 1)):
        number += 1
        if len(line) > LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                continue
        if number == 1:
            line = line.removeprefix(MARK)
        if line.strip():
            yield number, line


def json_row(row: Row) -> dict[str, Any]:
    """Return a row's values by name; RowError: none that can be used."""
    if len(row[1]) > LINE_BYTES:
        raise RowError(row[0], f"has more than {LINE_BYTES:,} bytes")
    return json_record((row[0], decoded(row))).values
