"""The table of an audit, in which a person corrects labels: CSV that spreadsheets open and save."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from laplora.data.records import Record, read_records
from laplora.errors import DataError
from laplora.files.atomic import write_whole
from laplora.prompts.labelled import empty, label_text

#: The correction that leaves a row out.
LEFT_OUT = "-"
_COLUMNS = ("row", "found", "text", "label", "likelier", "probability", "probability_of_likelier", "correction")
#: A cell that begins with one of them could be a formula, so it is written behind a ', which reading takes away.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")

#: By text and label, as ``folded``, the label that a row is to have; None: it is left out.
Corrections = Mapping[tuple[str, str], str | None]


def folded(value: str) -> str:
    """Return what is the same of texts and labels that differ in case or white space alone."""
    return " ".join(value.casefold().split())


def write_table(path: Path, listed: Sequence[Mapping[str, Any]]) -> None:
    """Write what an audit lists (``LabelAudit.to_rows``), with an empty column ``correction``."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    for row in listed:
        cells = (row["id"], row["found"], row["text"], row["label"], row["likelier"])
        shown = (f"{row['probability'][name]:.3f}" for name in ("label", "likelier"))
        writer.writerow([*(f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells), *shown, ""])
    write_whole(path, "\ufeff" + out.getvalue())  # the mark tells spreadsheets that it is UTF-8


def read_table(path: Path) -> dict[tuple[str, str], str | None]:
    """Return the corrections of a table; cells without one change nothing.

    Raises:
        DataError: no such table, or one row corrected in two ways.
    """
    found = dict[tuple[str, str], str | None]()
    for record in read_records(path):
        cells = {name: str(record.values.get(name) or "").removeprefix("'") for name in ("text", "label")}
        if "" in cells.values() or "correction" not in record.values:
            raise DataError(f"{path}, line {record.line}: a table of corrections has text, label and correction")
        if not (said := str(record.values["correction"] or "").strip().removeprefix("'")):
            continue
        key, wanted = (folded(cells["text"]), folded(cells["label"])), None if said == LEFT_OUT else said
        if found.setdefault(key, wanted) != wanted:
            raise DataError(f"{path}, line {record.line}: this text is corrected in two ways")
    return found


def corrected(
    records: Sequence[Record], text: str, label: str, corrections: Corrections
) -> tuple[list[Record], tuple[str, ...]]:
    """Return records with their labels corrected, every copy of a row alike, and a note of what was done.

    Raises:
        DataError: a label that no row has, or corrections of none of these rows.
    """
    kept, done = list[Record](), set[tuple[str, str]]()
    known = {folded(str(label_text(value))) for record in records if not empty(value := record.values.get(label))}
    if unknown := sorted(one for one in corrections.values() if one is not None and folded(one) not in known):
        raise DataError(f"no row has the label {unknown[0]!r} of a correction: write a label that rows have, or -")
    for record in records:
        given = record.values.get(text), record.values.get(label)
        key = ("", "") if any(map(empty, given)) else (folded(str(given[0])), folded(str(label_text(given[1]))))
        if key not in corrections:
            kept.append(record)
            continue
        done.add(key)
        if (wanted := corrections[key]) is not None:
            kept.append(replace(record, values=record.values | {label: wanted}))
    if corrections and not done:
        raise DataError("the corrections are of none of these rows: is the table of another file?")
    out, missing = sum(corrections[key] is None for key in done), len(corrections) - len(done)
    notes = [f"labels corrected: {len(done) - out}; rows left out: {out}"]
    return kept, (*notes, *([f"corrections of rows that are not there: {missing}"] if missing else []))
