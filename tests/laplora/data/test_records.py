"""Files of labelled rows: what is accepted, and how every kind of mistake is named."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laplora.data.labelled import Task, examples_of
from laplora.data.records import read_records
from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.templates import TEMPLATES

SENTIMENT = Task("toy", TEMPLATES["sentiment"], ("negative", "positive"))
CHOICE = Task("toy", TEMPLATES["multiple_choice"], ("A", "B", "C", "D"))


def read(path: Path, content: str | bytes, task: Task = SENTIMENT, **options: Any) -> tuple[Example, ...]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    given = {"label_field": "label", "label_map": {}, "columns": {}, **options}
    return examples_of(path, read_records(path), task, **given)


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_json_lines_and_csv_with_quotes_line_breaks_and_physical_line_numbers(tmp_path: Path) -> None:
    content = jsonl(
        {"text": "good\u2028really", "label": "positive", "id": "x1", "extra": [1]},
        {"text": "bad", "label": " negative "},
    )
    first, second = read(tmp_path / "a.jsonl", content)
    assert first == Example("x1", {"text": "good\u2028really"}, 1, 2)
    assert second == Example("a.jsonl:2", {"text": "bad"}, 0, 2)
    content = 'label,text,note\npositive,"one ""two"",\nthree",x\n\nnegative,plain,\n'
    first, second = read(tmp_path / "a.csv", content)
    assert first == Example("a.csv:2", {"text": 'one "two",\nthree'}, 1, 2)
    assert second == Example("a.csv:5", {"text": "plain"}, 0, 2)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a.jsonl", jsonl({"text": "fine, thanks", "label": "positive"})),
        ("a.csv", 'text,label\n"fine, thanks",positive\n'),
        ("a.tsv", "text\tlabel\nfine, thanks\tpositive\n"),
    ],
)
def test_byte_order_mark_and_crlf(tmp_path: Path, name: str, plain: str) -> None:
    expected = read(tmp_path / name, plain)
    assert [(row.fields, row.label) for row in expected] == [({"text": "fine, thanks"}, 1)]
    assert read(tmp_path / name, b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode()) == expected
    assert read(tmp_path / name, plain.rstrip("\n")) == expected


def test_what_a_spreadsheet_writes_around_its_cells_is_no_value(tmp_path: Path) -> None:
    expected = read(tmp_path / "a.csv", "text,label\n\nfine,positive\n")
    for content in ("sep=;\r\ntext;label;;\r\nfine;positive;;\r\n;;;\r\n", "\ntext|label\nfine|positive\n"):
        assert read(tmp_path / "a.csv", content) == expected
    with pytest.raises(DataError, match="line 3: has 3 fields, the header has 2; quote"):
        read(tmp_path / "a.csv", "sep=;\ntext;label;\nfine;positive;odd\n")


def test_label_map_takes_numbers_and_booleans(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": v} for i, v in enumerate([0, 1, True, False, "1", 1.0])]
    label_map = {"0": "negative", "1": "positive", "true": "positive", "false": "negative", "1.0": "positive"}
    assert [e.label for e in read(tmp_path / "a.jsonl", jsonl(*rows), label_map=label_map)] == [0, 1, 1, 0, 1, 1]


def test_choices_from_an_array_or_from_columns(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["x", "y", "z"], "label": "C"}
    (expected,) = read(tmp_path / "a.jsonl", jsonl(row), CHOICE)
    assert expected.fields == {"question": "q", "choices": ("x", "y", "z")}
    assert (expected.label, expected.class_count) == (2, 3)
    cells = "question,option1,option2,option3,option4,label\nq,x,y,z,,C\n"
    (row_of_cells,) = read(tmp_path / "a.csv", cells, CHOICE)
    assert (row_of_cells.fields, row_of_cells.class_count) == (expected.fields, 3)
    (array_in_cell,) = read(tmp_path / "b.csv", 'question,choices,label\nq,"[""x"",""y"",""z""]",C\n', CHOICE)
    assert array_in_cell.fields == expected.fields


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{bad", "not valid JSON (column 2: "),
        ("[1]", "expected a JSON object on one line, got an array"),
        ('{"text": "SECRET"}', "field 'label' (the label) is missing"),
        ('{"label": "positive", "txet": "SECRET"}', "field 'text' is missing; the row has ['label', 'txet']"),
        ('{"text": null, "label": "positive"}', "field 'text' is null"),
        ('{"text": "SECRET", "label": null}', "field 'label' (the label) is null or nan: leave the row out"),
        ('{"text": "\\ud800", "label": "positive"}', "field 'text' holds an unpaired surrogate"),
        ('{"text": "SECRET", "label": "good"}', "field 'label' is 'good', expected one of ['negative', 'positive']"),
        ('{"text": "SECRET", "label": "' + "SECRET" * 20 + '"}', "field 'label' is a text of 120 characters"),
        ('{"text": "SECRET", "label": ["positive"]}', "field 'label' must be one label, got a list"),
        ('{"text": "SECRET", "label": " "}', "field 'label' (the label) is empty"),
        ('{"text": "a", "text": "b", "label": "positive"}', "field 'text' appears twice"),
        ('{"text": NaN, "label": "positive"}', "NaN is not JSON"),
        ('{"text": "a", "label": ' + "1" * 5000 + "}", "not usable JSON (a number has more than 4300 digits)"),
        ('{"text": "a", "label": 1e999}', "a number is beyond what a float holds"),
        ("[" * 100_000, "not usable JSON (nested too deeply)"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str, expected: str) -> None:
    content = jsonl({"text": "fine", "label": "positive"}) + line + "\n"
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.jsonl'}, line 2: ")
    assert expected in message
    assert "SECRET" not in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\na,positive\nb\n", "line 3: has 1 field, the header has 2"),
        (
            "It is late again, and wet.,bad\na,good\n",
            "line 2: has 2 fields, the header has 3; is a quote or a separator missing?; or, if line 1 is a row, put",
        ),
        ('text,label\na,positive\n"never closed,negative\n', "line 3: not valid CSV"),
        ('text,label\na,positive\n"a"b,negative\n', "line 3: not valid CSV"),
        ("text,label,text\na,positive,b\n", "line 1: the header names ['text'] more than once"),
        ("text,label\n", "holds no rows after its header"),
        ("text,label\ra,positive\r", "line 1: not valid CSV"),
        ("", "is empty, expected a header line"),
        ("text,label\n" + "x" * 200_000 + ",positive\n", "line 2: not valid CSV (field larger"),
    ],
)
def test_a_bad_line_of_csv_is_named(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv", content)
    assert str(caught.value).startswith(str(tmp_path / "a.csv"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "q", "choices": ["x", "y"], "label": "C"}, "'label' is 'C', but the row has 2 choices (A, B)"),
        ({"question": "q", "choices": ["x"], "label": "A"}, "takes 2 to 4 choices, got 1"),
        ({"question": "q", "choices": {"a": "x"}, "label": "A"}, "field 'choices' must be an array"),
        ({"question": "q", "choices": "x, y", "label": "A"}, "field 'choices' must hold a JSON array"),
        ({"question": "q", "option1": "x", "option3": "y", "label": "A"}, "field 'option2' is missing"),
        ({"question": "q", "label": "A"}, "field 'choices' is missing"),
    ],
)
def test_bad_choices_are_named(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", jsonl(row), CHOICE)
    assert str(caught.value).startswith(f"{tmp_path / 'a.jsonl'}, line 1: ")
    assert expected in str(caught.value)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    good = jsonl({"text": "fine", "label": "positive"}).encode()
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: byte 11 of the line is not UTF-8"):
        read(tmp_path / "a.jsonl", good + b'{"text": "\xe9", "label": "positive"}\n')
    with pytest.raises(DataError, match=r"a\.csv, line 3: byte 3 of the line is not UTF-8"):
        read(tmp_path / "a.csv", b"text,label\na,positive\ncaf\xe9,negative\n".replace(b"caf", b"ca"))
    with pytest.raises(DataError, match="is UTF-16: save it as UTF-8"):
        read(tmp_path / "b.csv", "text,label\n".encode("utf-16"))


def test_the_first_problems_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", jsonl(*({"text": "t", "label": i} for i in range(12))))
    lines = str(caught.value).split("\n")
    assert len(lines) == 6
    assert lines[-1] == "... and 7 more rows with a problem"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", "[]", "expected a file that ends in one of"),
        ("a", "", "got 'no ending'"),
        ("a.jsonl", "\n \n", "holds no rows"),
        ("a.jsonl", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=expected):
        read_records(tmp_path / name)


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "tsv"]))
def test_any_bytes_are_read_or_refused_by_name(tmp_path_factory: pytest.TempPathFactory, raw: bytes, end: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz.{end}"
    path.write_bytes(raw)
    problem, count = "", 0
    try:
        count = len(read_records(path))
    except DataError as error:
        problem = str(error)
    assert problem.startswith(str(path)) if problem else count > 0


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_parquet_cells_that_json_has_not_come_as_text_and_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "choices": ["x", "y"], "on": datetime.date(2024, 1, 2), "raw": b"z", "none": None}]
    (record,) = read_records(parquet(tmp_path / "a.parquet", rows))
    assert record.line == 1
    assert record.values == {"text": "a", "choices": ["x", "y"], "on": "2024-01-02", "raw": "b'z'", "none": None}
    (tmp_path / "text.parquet").write_text("sentence,mood\n")
    (tmp_path / "folder.parquet").mkdir()
    parquet(tmp_path / "empty.parquet", [])
    for name, message in (
        ("none", r"cannot be read \(No such"),
        ("text", "cannot be read as Parquet"),
        ("empty", "no rows"),
        ("folder", r"cannot be read \(Is a dir"),
    ):
        with pytest.raises(DataError, match=f"{name}.parquet: .*{message}"):
            read_records(tmp_path / f"{name}.parquet")
