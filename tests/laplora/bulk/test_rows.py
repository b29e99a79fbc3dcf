"""Sources cut into blocks: every row once and in order, cut alike whatever is asked of them."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import write_rows

from laplora.bulk.rows import WINDOW_BYTES, Source
from laplora.bulk.rows import windows as cut
from laplora.data.lines import LINE_BYTES
from laplora.errors import DataError


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def windows(source: Source) -> list[list[tuple[int, bytes]]]:
    return [window for block in source.blocks() for window in source.windows(block)]


@settings(max_examples=40)
@given(
    lines=st.lists(st.sampled_from([b"", b" \r", b'{"a": 1}', b"x" * 70]), max_size=30),
    ends=st.booleans(),
    most_bytes=st.sampled_from([100, 1000]),
)
def test_windows_have_the_lines_of_a_reader_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: bool, most_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    expected = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laplora.bulk.rows.MOST_BLOCKS", 4)
        patch.setattr("laplora.bulk.rows.WINDOW_BYTES", most_bytes)
        source = Source.at(path, 3)
        found, blocks = windows(source), source.blocks()
        assert found == list(cut(chain(*found), 3))
    assert [(number, line.rstrip(b"\n")) for number, line in chain(*found)] == expected
    assert len(blocks) <= 5
    assert all(one.end == two.begin for one, two in pairwise(blocks))
    assert [block.number for block in blocks] == list(range(len(blocks)))


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.data.lines.LINE_BYTES", 50)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n' + b"x" * 400 + b'\n{"b": 2}')
    assert windows(Source.at(path, 2)) == [[(1, b'{"a": 1}\n'), (2, b"x" * 51)], [(3, b'{"b": 2}')]]
    table = write_parquet(tmp_path / "rows.parquet", [{"text": "x" * 400}, {"text": "short"}])
    assert [len(line) for _, line in windows(Source.at(table, 4))[0]] == [51, 17]


def test_a_window_of_long_rows_has_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.bulk.rows.WINDOW_BYTES", 100)
    rows = [{"text": letter * (30 if letter < "h" else 1)} for letter in "abcdefghijklmnop"]
    csv = tmp_path / "rows.csv"
    csv.write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    for path in (write_rows(tmp_path / "rows.jsonl", rows), csv, write_parquet(tmp_path / "rows.parquet", rows)):
        found = windows(Source.at(path, 6))
        assert [json.loads(line) for _, line in chain(*found)] == rows
        assert max(sum(len(line) for _, line in window[:-1]) for window in found) < 100
        assert (len(found[0]), max(map(len, found))) == (3, 6), path.suffix


def test_long_rows_of_parquet_are_not_all_in_memory_at_once(tmp_path: Path) -> None:
    """A page of a column is, and beside it a batch of about ``WINDOW_BYTES``."""
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"text": ["x" * 2**20 + str(number) for number in range(64)]})
    pyarrow.parquet.write_table(table, path, use_dictionary=False, write_batch_size=2)
    del table
    before = pyarrow.total_allocated_bytes()
    source, most = Source.at(path, 256), 0
    for block in source.blocks():
        for window in source.windows(block):
            most = max(most, pyarrow.total_allocated_bytes() - before)
            assert sum(len(line) for _, line in window) < WINDOW_BYTES + LINE_BYTES
    assert most < 3 * WINDOW_BYTES


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_rows_of_a_table_come_once_whatever_its_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr("laplora.bulk.rows.MOST_BLOCKS", 4)
    rows = [{"text": f"row {number}", "other": float("nan")} for number in range(45)]
    source = Source.at(write_parquet(tmp_path / "rows.parquet", rows, group), 4, ["text"])
    assert [(block.begin, block.end) for block in source.blocks()] == [(0, 12), (12, 24), (24, 36), (36, 45)]
    found = windows(source)
    assert [number for number, _ in chain(*found)] == list(range(1, 46))
    assert [json.loads(line) for _, line in chain(*found)] == [{"text": row["text"]} for row in rows]
    every = windows(Source.at(tmp_path / "rows.parquet", 45))
    assert json.loads(every[0][0][1]) == {"text": "row 0"}  # what is no number of JSON has no value


def test_what_is_no_source_or_was_changed_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in one of .*got '\.xlsx'"):
        Source.at(tmp_path / "rows.xlsx", 4)
    with pytest.raises(DataError, match="no such file"):
        Source.at(tmp_path / "rows.jsonl", 4)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Source.at(tmp_path / "rows.parquet", 4).blocks()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n \n")
    assert Source.at(path, 4).blocks() == []
    path.write_bytes(b"1\n2\n")
    source = Source.at(path, 1)
    blocks = source.blocks()
    path.write_bytes(b"1\n2\n3\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(source.windows(blocks[1]))
