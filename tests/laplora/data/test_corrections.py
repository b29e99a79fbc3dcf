"""The table of an audit: a person's corrections reach every copy of their row, and no cell is a formula."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from laplora.data.corrections import corrected, read_table, write_table
from laplora.data.records import Record
from laplora.errors import DataError

TEXTS = ("=1+1", "'quoted'", 'a "b", c\nd', "plain")


def row(text: str, label: str) -> dict[str, Any]:
    shares = {"label": 0.1, "likelier": 0.8}
    return {"id": "1", "found": "wrong", "text": text, "label": label, "likelier": "y", "probability": shares}


def filled(path: Path, *said: str) -> Path:
    """Fill in the column correction, as a spreadsheet saves it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[-1] == "correction"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=";").writerows([header, *([*r[:-1], s] for r, s in zip(rows, said, strict=True))])
    return path


def test_what_a_person_fills_in_is_what_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "rows.audit.csv"
    write_table(path, [row(text, "-x" if text == "plain" else "x") for text in TEXTS])
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [one[name] for one in csv.DictReader(file) for name in ("text", "label")]
    assert not [cell for cell in cells if cell.startswith(("=", "-", "+", "@"))]
    table = read_table(filled(path, "y", "-", "", " z "))
    assert table == {("=1+1", "x"): "y", ("'quoted'", "x"): None, ("plain", "-x"): "z"}

    given = [
        (1, "=1+1", "x"),
        (2, "Plain ", "-X"),
        (3, "plain", "y"),
        (4, "'quoted'", "x"),
        (5, "", "x"),
        (6, "plain", "-x"),
        (7, "w", "z"),
    ]
    records = [Record(line, {"t": text, "l": label, "more": line}) for line, text, label in given]
    left, notes = corrected(records, "t", "l", {**table, ("gone", "x"): "y"})
    assert [(one.line, one.values["l"]) for one in left] == [(1, "y"), (2, "z"), (3, "y"), (5, "x"), (6, "z"), (7, "z")]
    assert left[0].values == {"t": "=1+1", "l": "y", "more": 1}
    with pytest.raises(DataError, match="no row has the label 'zz'"):
        corrected(records, "t", "l", {("plain", "y"): "zz"})
    with pytest.raises(DataError, match="none of these rows"):
        corrected(records, "t", "l", {("gone", "x"): None})
    assert notes == ("labels corrected: 2; rows left out: 1", "corrections of rows that are not there: 1")


def test_a_table_that_says_two_things_or_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.audit.csv"
    write_table(path, [row("a", "x"), row("A", "x")])
    with pytest.raises(DataError, match="line 3: this text is corrected in two ways"):
        read_table(filled(path, "y", "z"))
    path.write_text("text,label\na,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: a table of corrections has text, label and correction"):
        read_table(path)
