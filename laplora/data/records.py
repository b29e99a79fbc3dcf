"""JSON Lines, CSV and Parquet files as numbered records, with every problem tied to its file and line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from laplora.data.parquet import parquet_file, parquet_rows
from laplora.errors import DataError
from laplora.files.strict_json import strict_json

#: File name endings and how such a file is read.
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_SHOWN_PROBLEMS = 5
#: The byte order mark of UTF-8.
MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_AS_UTF8 = "save it as UTF-8, in a spreadsheet as 'CSV UTF-8'"

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Record:
    """One row of a file: the physical line it starts on (of Parquet: which row it is), from 1, and its values.

    Those of CSV are strings only.
    """

    line: int
    values: dict[str, Any]


class RowError(Exception):
    """A problem with one row, before it is known whether others have one too."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.problem = problem


def each(path: Path | str, items: Iterable[Item], make: Callable[[Item], Made]) -> list[Made]:
    """Return what is made of every item of a file; errors as of ``each_in_turn``."""
    return list(each_in_turn(path, items, make))


def each_in_turn(path: Path | str, items: Iterable[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
    """Yield what is made of every item of a file that has no problem.

    Raises:
        DataError: after the last item, the first problems and how many there are; a RowError of ``items`` is the last.
    """
    problems: list[str] = []
    count = 0

    def note(error: RowError) -> None:
        nonlocal count
        count += 1
        if count <= _SHOWN_PROBLEMS:
            problems.append(f"{path}, {error}")

    try:
        for item in items:
            try:
                made = make(item)
            except RowError as error:
                note(error)
            else:
                yield made
    except RowError as error:
        note(error)
    if problems:
        more = count - _SHOWN_PROBLEMS
        rest = [f"... and {more} more rows with a problem"] if more > 0 else []
        raise DataError("\n".join(problems + rest))


def read_records(path: Path) -> list[Record]:
    """Return the records of a file; text is UTF-8, where a mark, CRLF line ends and blank lines are accepted.

    Raises:
        DataError: no such file, another ending, no rows, or rows that cannot be read; with the line numbers.
    """
    kind = format_of(path)
    try:
        with path.open("rb") as file:  # by its path a folder would be read too, as one table of all its files
            if kind == "parquet":
                with parquet_file(file, path) as table:
                    records = [Record(number, values) for number, values in enumerate(parquet_rows(table), 1)]
            elif kind == "jsonl":
                filled = ((number, line) for number, line in enumerate(_lines(path, file), 1) if line.strip())
                records = each(path, filled, json_record)
            else:
                records = csv_records(path, file, kind)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not records:
        raise DataError(f"{path}: holds no rows" + ("" if kind in ("jsonl", "parquet") else " after its header"))
    return records


def format_of(place: Path | str) -> str:
    """Return how a file is read, by its ending: a value of ``FORMATS``; DataError: by none."""
    ending = Path(place).suffix.lower()
    if ending not in FORMATS:
        raise DataError(
            f"{place}: expected a file that ends in one of {sorted(FORMATS)}, got {ending or 'no ending'!r}: save a "
            "spreadsheet as 'CSV UTF-8'"
        )
    return FORMATS[ending]


def _lines(place: Path | str, file: BinaryIO) -> list[str]:
    raw = file.read()
    if raw.startswith(_UTF16_MARKS):
        raise DataError(f"{place}: is UTF-16: {_AS_UTF8}")
    # split on the byte, not with str.splitlines: text may hold U+2028 and other characters it takes for line ends
    return each(place, enumerate(raw.removeprefix(MARK).split(b"\n"), start=1), decoded)


def decoded(numbered: tuple[int, bytes]) -> str:
    """Return a line, with its number, as text; RowError: it is not UTF-8."""
    number, line = numbered
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} of the line"
        raise RowError(number, f"{place} is not UTF-8 ({error.reason}): {_AS_UTF8}") from None


def json_record(numbered: tuple[int, str]) -> Record:
    """Return a line of JSON Lines, with its number, as a record; RowError: no JSON object, or a field twice."""
    number, line = numbered
    try:
        value = strict_json(line)
    except json.JSONDecodeError as error:
        raise RowError(number, f"not valid JSON (column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise RowError(number, "not usable JSON (nested too deeply)") from None
    except ValueError as error:
        raise RowError(number, f"not usable JSON ({error})") from None
    if not isinstance(value, dict):
        raise RowError(number, f"expected a JSON object on one line, got {_json_type(value)}")
    return Record(number, value)


def csv_records(path: Path | str, file: BinaryIO, kind: str) -> list[Record]:
    """Return the records of a CSV file, or a ``tsv``, that has a header; it is in memory as a whole.

    The header says what parts the fields of a CSV file: a comma, or a semicolon, tab or bar where it has no comma. A
    spreadsheet's first line ``sep=;`` is no header, and its last columns without a name are none if they are empty.

    Raises:
        DataError: no header, or rows that cannot be read; with the line numbers.
    """
    lines = _lines(path, file)
    if re.fullmatch("sep=.\r?", lines[0]):
        lines[0] = ""
    rows = _csv_rows(lines, kind, "\t" if kind == "tsv" else _delimiter(lines))
    try:
        start, cells = next(rows)
    except RowError as error:
        raise DataError(f"{path}, {error}") from None
    except StopIteration:
        raise DataError(f"{path}: is empty, expected a header line") from None
    header = [name.strip() for name in cells]
    header = header[: max((place for place, name in enumerate(header, 1) if name), default=0)]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line {start}: the header names {twice} more than once")

    def record(row: tuple[int, list[str]]) -> Record:
        line, cells = row[0], row[1] if any(map(str.strip, row[1][len(header) :])) else row[1][: len(header)]
        if len(cells) == len(header):
            return Record(line, dict(zip(header, cells, strict=True)))
        few = len(cells) < len(header)
        hint = "is a quote or a separator missing?" if few else "quote values with separators"
        if any(len(name.split()) > 3 for name in header):
            hint += f"; or, if line {start} is a row, put a line with names above it, such as text,label"
        fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
        raise RowError(line, f"has {fields}, the header has {len(header)}; {hint}")

    return each(path, rows, record)


def _delimiter(lines: Iterable[str]) -> str:
    """Return what parts the fields of a CSV file, by its header's text outside quotes."""
    header = re.sub('"[^"]*"', "", next((line for line in lines if line.strip()), ""))
    return next((one for one in (",", ";", "\t", "|") if one in header), ",")


def _csv_rows(lines: list[str], kind: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the line it starts on."""
    if lines and not lines[-1]:
        lines = lines[:-1]
    # csv wants line ends back, for quoted fields that hold them
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:  # what follows an open quote has no certain row ends any more
            raise RowError(start, f"not valid {kind.upper()} ({error})") from None
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield start, row


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
