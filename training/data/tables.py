"""JSON Lines and CSV files as numbered records, with every problem tied to its file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laplora.errors import DataError

#: File name endings and how such a file is read.
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
_SHOWN_PROBLEMS = 5
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Record:
    """One row of a file.

    Attributes:
        line: the physical line it starts on, from 1.
        values: by field name; strings only where the file is CSV.
    """

    line: int
    values: dict[str, Any]


class RowError(Exception):
    """A problem with one row, before it is known whether others have one too."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


class Problems:
    """Problems of one file, counted all and shown from the first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []
        self.count = 0

    def add(self, error: RowError) -> None:
        """Note one problem."""
        self.count += 1
        if len(self.lines) < _SHOWN_PROBLEMS:
            self.lines.append(f"{self.path}, {error}")

    def verify(self) -> None:
        """Raise what was noted.

        Raises:
            DataError: at least one problem was noted.
        """
        if self.count:
            more = self.count - len(self.lines)
            raise DataError("\n".join(self.lines + ([f"... and {more} more rows with a problem"] if more else [])))


def read_records(path: Path) -> list[Record]:
    """Return the records of a JSON Lines (.jsonl, .ndjson), CSV (.csv) or tab-separated (.tsv) file in UTF-8.

    A byte-order mark, CRLF line ends and blank lines are accepted.

    Raises:
        DataError: no such file, another ending, no rows, or rows that cannot be read; with the line numbers.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{path}: expected a file that ends in one of {sorted(FORMATS)}, got {path.suffix or 'no ending'!r}"
        )
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if raw.startswith(_UTF16_MARKS):
        raise DataError(f"{path}: is UTF-16: save it as UTF-8")
    problems = Problems(path)
    lines = list(_decode(raw, problems))
    problems.verify()
    rows = _json_records(lines, problems) if kind == "jsonl" else _csv_records(path, lines, problems, kind)
    records = list(rows)
    problems.verify()
    if not records:
        raise DataError(f"{path}: holds no rows" + ("" if kind == "jsonl" else " after its header"))
    return records


def _decode(raw: bytes, problems: Problems) -> Iterator[str]:
    # split on the byte, not with str.splitlines: text may hold U+2028 and other characters it takes for line ends
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(
                RowError(number, f"byte {error.start + 1} of the line is not UTF-8 ({error.reason}): save it as UTF-8")
            )


def _json_records(lines: list[str], problems: Problems) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield Record(number, _json_object(line, number))
        except RowError as error:
            problems.add(error)


def _json_object(line: str, number: int) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                raise RowError(number, f"field {name[:64]!r} appears twice")
            values[name] = value
        return values

    def no_constant(name: str) -> None:
        raise RowError(number, f"{name} is not JSON")

    try:
        value = json.loads(line, object_pairs_hook=unique, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise RowError(number, f"not valid JSON (column {error.colno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or very deep nesting
        raise RowError(number, f"not usable JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise RowError(number, f"expected a JSON object on one line, got {_json_type(value)}")
    return value


def _csv_records(path: Path, lines: list[str], problems: Problems, kind: str) -> Iterator[Record]:
    if lines and not lines[-1]:
        lines = lines[:-1]
    # csv wants line ends back, for quoted fields that hold them
    reader = csv.reader((line + "\n" for line in lines), delimiter="\t" if kind == "tsv" else ",", strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            # what follows an open quote has no certain row ends any more
            problems.add(RowError(start, f"not valid {kind.upper()} ({error})"))
            return
        if row is None:
            break
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = _header(path, row, start)
        elif len(row) != len(header):
            hint = (
                "; is a quote or a separator missing?" if len(row) < len(header) else "; quote values with separators"
            )
            problems.add(RowError(start, f"has {len(row)} fields, the header has {len(header)}{hint}"))
        else:
            yield Record(start, dict(zip(header, row, strict=True)))
    if header is None:
        raise DataError(f"{path}: is empty, expected a header line")


def _header(path: Path, row: list[str], line: int) -> list[str]:
    header = [name.strip() for name in row]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line {line}: the header names {twice} more than once")
    return header


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
