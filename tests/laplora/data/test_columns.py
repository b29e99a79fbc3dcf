"""Which columns hold text and label, and which rows can be used of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from laplora.data.columns import find_label, find_text, labelled_texts
from laplora.data.records import Record
from laplora.errors import DataError

FILE = Path("rows.csv")
WORDS = ["red", "green", "blue", "warm", "cold", "late", "early", "small", "large", "bright"]
TEXTS = [f"a {one} parcel came {other}" for one in WORDS for other in WORDS][:60]


def records(**columns: list[Any]) -> list[Record]:
    """Return a file's records, of columns; the header is line 1."""
    rows = zip(*columns.values(), strict=True)
    return [Record(line, dict(zip(columns, row, strict=True))) for line, row in enumerate(rows, 2)]


LABELS = ["good", "bad", "odd"] * 20
NUMBERS = list(map(str, range(60)))


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        ({"id": NUMBERS, "a": TEXTS, "b": LABELS}, "a", "b"),  # no name fits
        ({"key": NUMBERS, "date": ["2026-01-02"] * 60, "note": TEXTS, "stars": [1, 5, 2.0] * 20}, "note", "stars"),
        ({"customer": [f"c{i}x" for i in NUMBERS], "a": TEXTS, "paid": [True, False] * 30}, "a", "paid"),
        ({"title": [t[::-1] for t in TEXTS], "Message": TEXTS, "shop": LABELS, "Topic": LABELS}, "Message", "Topic"),
        ({"amount": [str(i // 2) for i in range(60)], "text": TEXTS, "label": LABELS}, "text", "label"),
        ({"title": TEXTS, "subject": [t[::-1] for t in TEXTS], "label": LABELS}, None, "label"),
        ({"text": TEXTS, "shop": LABELS, "land": LABELS}, "text", None),
        ({"id": NUMBERS, "amount": NUMBERS}, None, None),
    ],
)
def test_a_column_is_found_by_what_it_holds_and_in_doubt_by_its_name(
    columns: dict[str, list[Any]], text: str | None, label: str | None
) -> None:
    rows = records(**columns)
    assert find_text(rows) == text
    assert find_label(rows, text or "") == label


def test_rows_are_used_once_and_what_is_odd_is_noted_with_its_lines() -> None:
    texts, labels = [*TEXTS[:40], f"  {TEXTS[3].upper()}", "", TEXTS[1], "new"], (LABELS * 2)[:40]
    labels = ["Good" if i == 9 else label for i, label in enumerate(labels)] + ["good", "bad", "odd", "rare"]
    found = labelled_texts(FILE, records(text=texts, label=labels, id=NUMBERS[:44]), "text", "label")
    assert found.labels == ("bad", "good", "odd")
    assert [row["id"] for row in found.rows] == [*NUMBERS[:40], "42"]
    assert found.rows[9] == {"id": "9", "text": TEXTS[9], "label": "good"}
    assert found.notes == (
        "left out, as text is empty or nan: 1 of 44 rows (line 43)",
        "1 row with the text and the label of an earlier one: left out (line 42)",
        "2 rows with a text that has several labels: each is kept, so correct those that are wrong (lines 3, 44)",
        "labels that differ in case alone are one: 5 spellings of 4 labels",
        "labels with one row, left out and never answered: rare",
    )
    assert labelled_texts(FILE, records(text=TEXTS, label=LABELS), "text", "label").notes == ()


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"text": TEXTS, "label": LABELS}, ("body", "label"), "no column 'body': name one of 'text', 'label'"),
        ({"text": TEXTS, "label": LABELS}, ("text", "text"), "name two columns"),
        ({"text": TEXTS, "label": [["good"]] * 60}, ("text", "label"), "line 2: 'label' is a list"),
        ({"text": TEXTS[:19], "label": LABELS[:19]}, ("text", "label"), "19 rows can be used.* fewer than 20 show"),
        ({"text": TEXTS, "label": ["good"] * 60}, ("text", "label"), "has 1 labels.* two labels or more"),
        ({"text": TEXTS, "label": NUMBERS}, ("text", "label"), "60 labels, 60 of them with one row.* --label"),
        (
            {TEXTS[0]: TEXTS, "good": LABELS},
            (TEXTS[0], "good"),
            "rows.csv: its first line looks like a row.* text,label",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(
    columns: dict[str, list[Any]], named: tuple[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labelled_texts(FILE, records(**columns), *named)
