"""Which columns hold text and label, and which rows can be used of them."""

from __future__ import annotations

import re
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from laplora.data.columns import find_label, find_text, labelled_texts
from laplora.data.near_copies import near_copies
from laplora.data.records import Record
from laplora.errors import DataError

FILE = Path("rows.csv")
WORDS = ["red", "green", "blue", "warm", "cold", "late", "early", "small", "large", "bright", "round", "flat"]
TEXTS = [f"{one} {other}" for one, other in combinations(WORDS, 2)][:60]


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
        (
            {"text": TEXTS, "b": [{"good": 0.9, "bad": 0.1}, '{"bad": 0.8, "good": 0.2}'] * 30, "c": NUMBERS},
            "text",
            "b",
        ),
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
    labels = ["Good" if i == 9 else label for i, label in enumerate(labels)] + ["good", "bad", "odd", "ra\r\n re"]
    found = labelled_texts(FILE, records(text=texts, label=labels, id=NUMBERS[:44]), "text", "label")
    assert found.labels == ("bad", "good", "odd")
    assert [row["id"] for row in found.rows] == [*NUMBERS[:40], "42"]
    assert found.rows[9] == {"id": "9", "text": TEXTS[9], "label": "good", "group": ""}
    assert found.notes == (
        "1 row without a text: left out (line 43)",
        "1 row with the text and the label of an earlier one: left out (line 42)",
        "2 rows with a text that has several labels: each is kept, so correct those that are wrong (lines 3, 44)",
        "labels that differ in case or white space alone are one: 5 spellings of 4 labels, such as 'Good'",
        "labels with one row, left out and never answered: ra re",
    )
    assert labelled_texts(FILE, records(text=TEXTS, label=LABELS), "text", "label").notes == ()


def test_probabilities_are_the_labels_that_a_row_may_have() -> None:
    labels: list[Any] = [{"good": 0.9, "bad": 0.1}, '{"Bad": 0.6, " bad": 0.2, "good": 0.2, "odd": 0}', "bad"] * 20
    labels[5] = {"bad": 1.0005}
    found = labelled_texts(
        FILE, records(text=[*TEXTS[:59], TEXTS[0]], label=[*labels[:59], labels[0]]), "text", "label"
    )
    assert found.labels == ("bad", "good")
    assert [row["label"] for row in found.rows[:3]] == [
        {"good": 0.9, "bad": 0.1},
        {"bad": pytest.approx(0.8), "good": pytest.approx(0.2)},
        "bad",
    ]
    assert found.rows[5]["label"] == "bad"
    assert found.notes[0] == "1 row with the text and the label of an earlier one: left out (line 61)"
    with pytest.raises(DataError, match=r"rows\.csv, line 4: field 'label': the probabilities of a label sum to 1"):
        labelled_texts(FILE, records(text=TEXTS, label=[*labels[:2], {"good": 0.5}, *labels[3:]]), "text", "label")


def test_rows_that_belong_together_share_a_group() -> None:
    texts = [
        *TEXTS[:36],
        "order 1 for Anna is late again",
        "ORDER 2, for Bob, is late again!",
        "2 is late again: order",
    ]
    columns = {"text": texts, "label": LABELS[:39], "customer": ["", *NUMBERS[:36], "0", "nan"]}
    found = labelled_texts(FILE, records(**columns), "text", "label")
    together = [row["group"] for row in found.rows]
    assert together[:36] == [""] * 36
    assert together[36:] == [together[36] or "none"] * 3
    said = "3 rows that have a near-copy: each is measured by heads that know none of its copies (lines 38, 39, 40)"
    assert found.notes == (said,)
    groups = [row["group"] for row in labelled_texts(FILE, records(**columns), "text", "label", "customer").rows]
    assert groups[1] == groups[36] == groups[38] != ""
    assert groups.count("") == 35
    with pytest.raises(DataError, match="60 rows can be used, 2 but for near-copies, and fewer than 20"):
        labelled_texts(FILE, records(text=[f"{i} {'ab'[i % 2]}" for i in range(60)], label=LABELS), "text", "label")


def test_where_rows_are_too_many_to_compare_all_it_is_noted_from_which_line_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.data.columns.near_copies", partial(near_copies, steps=100))
    (note,) = labelled_texts(FILE, records(text=TEXTS, label=LABELS), "text", "label").notes
    lines = re.fullmatch("from line ([0-9]+) on, only rows with the same words count as near-copies: .*", note)
    assert lines
    assert 4 < int(lines[1]) < 60


def test_labels_that_may_mean_none_are_said() -> None:
    labels = ["None", "nan", "", "NaN", *LABELS[4:57], "none", "null", "null"]
    found = labelled_texts(FILE, records(text=TEXTS, label=labels), "text", "label")
    assert found.labels == ("None", "bad", "good", "null", "odd")
    assert found.notes == (
        "1 row without a label: left out (line 4)",
        "2 rows with 'nan' for a label, which tables write where there is none: left out (lines 3, 5)",
        "'None' is taken for a label: empty these cells if they mean that there is none",
        "labels that differ in case or white space alone are one: 6 spellings of 5 labels, such as 'none'",
    )


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        ({"text": TEXTS, "label": LABELS}, ("body", "label"), "no column 'body': name one of 'text', 'label'"),
        ({"text": TEXTS, "label": LABELS}, ("text", "text"), "name two columns"),
        ({"text": TEXTS, "label": [["good"]] * 60}, ("text", "label"), "line 2: 'label' is a list"),
        ({"text": TEXTS[:19], "label": LABELS[:19]}, ("text", "label"), "19 rows can be used.* fewer than 20 show"),
        (
            {"text": TEXTS, "label": ["good"] * 60},
            ("text", "label"),
            "1 labels of column 'label' have several.* at least two",
        ),
        (
            {"text": TEXTS, "label": NUMBERS},
            ("text", "label"),
            "0 labels of column 'label' have several rows, 60 have one.* --label",
        ),
        (
            {"text": [str(i) for i in range(8194)], "label": [str(i // 2) for i in range(8194)]},
            ("text", "label"),
            "4097 labels, and at most 4096 work: join some",
        ),
        (
            {"the red parcel": TEXTS, "good": LABELS},
            ("the red parcel", "good"),
            "rows.csv: its first line looks like a row.* text,label",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(
    columns: dict[str, list[Any]], named: tuple[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labelled_texts(FILE, records(**columns), *named)
