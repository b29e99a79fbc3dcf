"""Finished blocks: kept whole, bound to what they are of, one run at a time, and no file of anybody else's touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from laplora.bulk.parts import Parts, finished
from laplora.errors import ConfigError, DataError

RUN = {"artifact": "sha256:1", "source": {"bytes": 3}, "threads": 1}
#: Holds the lock of a folder until it is killed.
HOLDS = """
import sys
from pathlib import Path
from laplora.bulk.parts import Parts
with Parts(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    """A folder with the blocks 1 and 0 of ``RUN``."""
    parts = Parts(tmp_path / "out.parts")
    with parts.held():
        assert parts.begin(RUN) == {}
        parts.keep(finished(1, [(b"c\n", True), (b"d\n", False)]))
        parts.keep(finished(0, [(b"a\n", False), (b"b\n", False)]))
    return parts


def test_blocks_come_back_as_they_were_written(parts: Parts) -> None:
    (parts.folder / f".000002.jsonl.{'0' * 16}").write_bytes(b"a")  # as a killed process leaves it
    found = Parts(parts.folder).begin(RUN)
    assert found.keys() == {0, 1}
    assert (found[1].rows, found[1].bad) == (2, 1)
    assert b"".join(parts.lines([found[0], found[1]])) == b"a\nb\nc\nd\n"
    with parts.held():
        parts.remove()
    assert not parts.folder.exists()


def test_somebody_elses_files_are_not_touched(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        Parts(tmp_path).begin(RUN)
    (parts.folder / "0.jsonl").write_text("mine")
    parts.remove()
    assert [path.name for path in parts.folder.iterdir()] == ["0.jsonl"]


def test_a_block_that_was_changed_is_said(parts: Parts) -> None:
    block, path = parts.begin(RUN)[0], parts.folder / "000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a\n", b"x\n"))
    with pytest.raises(DataError, match="was changed"):
        list(parts.lines([block]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("000000.jsonl", text) for text in ('{"number"', "[]", "5", '{"number": 0}', "\xff")),
        ("000000.jsonl", '{"number": 0, "rows": "2", "bad": 0, "sha256": ""}'),
        ("000000.jsonl", '{"number": 1, "rows": 2, "bad": 0, "sha256": ""}'),
        ("run.json", "[1]"),
        ("run.json", ""),
    ],
)
def test_a_record_that_is_damaged_is_said(parts: Parts, name: str, content: str) -> None:
    (parts.folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name}: is damaged: remove"):
        parts.begin(RUN)


def test_a_second_run_is_refused_and_a_killed_one_holds_nothing(parts: Parts) -> None:
    command = [sys.executable, "-c", HOLDS, str(parts.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"out\.parts: another run works on it now"), parts.held():
            pass
        holder.kill()
    with parts.held():
        assert parts.begin(RUN).keys() == {0, 1}
