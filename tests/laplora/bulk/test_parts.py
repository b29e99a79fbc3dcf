"""Finished blocks: kept whole, bound to what they are of, and no file of anybody else's touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from laplora.bulk.parts import Finished, Parts
from laplora.errors import ConfigError, DataError

RUN = {"artifact": "sha256:1", "source": {"bytes": 3}, "threads": 1}


def test_blocks_come_back_as_they_were_written(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path / "out.parts"))
    assert parts.begin(RUN) == {}
    second = parts.write(1, [(3, b"c\n", True), (4, b"d\n", False)])
    first = parts.write(0, [(1, b"a\n", False), (2, b"b\n", False)])
    again = Parts(str(tmp_path / "out.parts"))
    assert again.begin(RUN) == {0: first, 1: second}
    assert (second.rows, second.bad, second.first_bad) == (2, 1, [3])
    assert b"".join(again.lines([first, second])) == b"a\nb\nc\nd\n"
    again.remove()
    assert not (tmp_path / "out.parts").exists()


def test_a_block_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path))

    def killed() -> object:
        yield 1, b"a\n", False
        raise KeyboardInterrupt

    parts.begin(RUN)
    with pytest.raises(KeyboardInterrupt):
        parts.write(0, killed())
    (tmp_path / f".000000.jsonl.{'0' * 16}").write_bytes(b"a")  # as a killed process leaves it
    assert parts.begin(RUN) == {}
    parts.remove()
    assert not tmp_path.exists()


def test_a_block_is_counted_as_often_as_it_is_begun(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path / "out.parts"))
    parts.begin(RUN)
    assert [parts.begun(3), parts.begun(3), parts.begun(4)] == [0, 1, 0]
    parts.begin(RUN)
    assert parts.begun(3) == 0
    parts.remove()
    assert not (tmp_path / "out.parts").exists()


def test_only_the_numbers_of_the_first_bad_rows_are_kept(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path))
    found = parts.write(0, [(number, b"\n", True) for number in range(1, 151)])
    assert (found.bad, found.first_bad) == (150, list(range(1, 101)))


def test_blocks_of_another_run_are_refused_and_kept(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path))
    parts.begin(RUN)
    parts.write(0, [(1, b"a\n", False)])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r'source was \{"bytes": 3\}, is \{"bytes": 4\}'):
        parts.begin({**RUN, "source": {"bytes": 4}})
    with pytest.raises(ConfigError, match=r"threads was 1, is not said"):
        parts.begin({"artifact": "sha256:1", "source": {"bytes": 3}})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_somebody_elses_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        Parts(str(tmp_path)).begin(RUN)
    parts = Parts(str(tmp_path / "out.parts"))
    parts.begin(RUN)
    parts.write(0, [(1, b"a\n", False)])
    (tmp_path / "out.parts" / "0.jsonl").write_text("mine")
    parts.remove()
    assert [path.name for path in (tmp_path / "out.parts").iterdir()] == ["0.jsonl"]


def test_a_block_that_was_changed_or_is_gone_is_said(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path))
    parts.begin(RUN)
    finished = parts.write(0, [(1, b"a\n", False)])
    (tmp_path / "000000.jsonl").write_bytes(b"b\n")
    with pytest.raises(DataError, match="was changed"):
        list(parts.lines([finished]))
    with pytest.raises(DataError, match="share, or an s3"):
        list(parts.lines([Finished(7, 1, "")]))
    (tmp_path / "000000.json").write_bytes(b'{"number"')
    with pytest.raises(DataError, match="is damaged"):
        parts.begin(RUN)
