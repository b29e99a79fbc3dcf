"""``laplora quick`` up to the model: what it finds, asks and refuses. tests/docs/test_tutorial.py runs it whole."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from laplora.commands.app import main

ROWS = [
    (f"{'x' * (i + 1)} came {'late' if i % 2 else 'early'} {'y' * (i + 1)}", ["good", "bad"][i % 2]) for i in range(40)
]


def csv(folder: Path, header: str, *more: str) -> Path:
    """Write the rows with further cells behind them, and return the file."""
    lines = [header, *(",".join([f'"{text}"', label, *(f"{label}{one}" for one in more)]) for text, label in ROWS)]
    (folder / "my rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "my rows.csv"


class Terminal(io.StringIO):
    """A terminal in which somebody types."""

    def isatty(self) -> bool:
        return True


class Left(Terminal):
    """A terminal whose user ends the command in place of an answer."""

    def __init__(self, by: type[BaseException]) -> None:
        super().__init__()
        self.by = by

    def readline(self, size: int | None = -1) -> str:
        raise self.by


def test_without_a_terminal_it_names_options_and_columns_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = csv(tmp_path, "message,topic")
    assert main(["quick", str(file)]) == 2
    said = capsys.readouterr().err
    for part in (
        "40 rows; the text is 'message', the label is 'topic'",
        "40 rows train 2 labels: bad 20, good 20",
        r"'message: {text}\ntopic:'",
        f"{tmp_path / 'my-rows'} (the artifact)",
        "give --yes if it is, or --text COLUMN --label COLUMN --yes with two of 'message', 'topic'",
    ):
        assert part in said
    assert main(["quick", str(csv(tmp_path, "a,b,c", "1")), "--yes"]) == 2
    assert "may be the label: give --label with one of 'a', 'b', 'c'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_corrections_of_a_table_are_what_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, table = csv(tmp_path, "message,topic"), tmp_path / "table.csv"
    lines = [f"{ROWS[0][0]},good,bad", f"{ROWS[1][0].upper()},bad,-", f"{ROWS[2][0]},good,"]
    table.write_text("\n".join(["text,label,correction", *lines]) + "\n", encoding="utf-8")
    assert main(["quick", str(file), "--corrections", str(table)]) == 2  # nobody to ask
    said = capsys.readouterr().err
    assert "40 rows; the text is 'message'" in said
    assert "labels corrected: 1; rows left out: 1\n" in said
    assert "39 rows train 2 labels: bad 20, good 19" in said
    (tmp_path / "my rows.audit.csv").touch()
    assert main(["audit", str(file), "--yes"]) == 2
    assert "my rows.audit.csv is there already, perhaps with corrections" in capsys.readouterr().err


def test_on_a_terminal_it_asks_for_the_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("d\nc\n"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["quick", str(csv(tmp_path, "a,b,c", "1")), "--base", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("Which column has the label? One of 'a' (such as ") == 2
    assert "the label is 'c'" in said
    assert said.splitlines()[-1].startswith("error: base model ")


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, EOFError])
def test_who_leaves_a_question_gets_the_status_of_an_interrupt_and_nothing_is_written(
    stopped: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Left(stopped))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    file = csv(tmp_path, "a,b,c", "1")
    assert main(["quick", str(file)]) == 130
    assert list(tmp_path.iterdir()) == [file]


def test_ctrl_c_in_the_middle_says_that_nothing_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("laplora.models.base.locate_base", stopped)
    file = csv(tmp_path, "message,topic")
    assert main(["quick", str(file), "--yes"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "nothing was written"
    assert list(tmp_path.iterdir()) == [file]


def test_what_steers_a_terminal_is_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"good": "\x1b[2Jgood", "bad": '"b\u202ead\x9b\u061c\u200e\nverdict: Ship"'}
    rows = "".join(f"{text},{labels[label]}\n" for text, label in ROWS)
    (tmp_path / "rows.csv").write_text(f"text,la\x1b[31mbel\n{rows}", encoding="utf-8")
    assert main(["quick", str(tmp_path / "rows.csv")]) == 2
    said = capsys.readouterr().err
    assert r"40 rows train 2 labels: \u001b[2Jgood 20, b\u202ead\u009b\u061c\u200e verdict: Ship 20" in said
    assert not {"\x1b", "\u202e", "\x9b", "\u061c", "\u200e"} & set(said)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a;b\nx;y\n".encode("utf-16"), [], "is UTF-16: save it as UTF-8"),
        (
            "text,label\ncaf\u00e9,x\n".encode("cp1252"),
            [],
            "is not UTF-8 (invalid continuation byte): save it as UTF-8",
        ),
        (b"text,label\nx,y\n", [], "0 labels of column 'label' have several rows, 1 have one"),
        (b"", [], "is empty, expected a header line"),
        (b"text,label\nx,y\n", ["--target-risk", "{}"], "--target-risk {}: expected an error rate"),
        (b"text,label\nx,y\n", ["--costs", "null"], 'expected numbers such as {"wrong": 30, "review": 2}'),
        (b"text,label\nx,y\n", ["--costs", '{"wrong": true, "review": 1}'], "expected numbers such as"),
        (b"text,label\nx,y\n", ["--target-risk", ".1", "--costs", "{}"], "give one of them"),
        (b"text,label\nx,y\n", ["--target-risk", "5"], "--target-risk 5: expected an error rate between 0 and 1"),
        (b"text,label\nx,y\n", ["--out", "taken.report"], "taken.report is there already: give --replace"),
        (b"text,label\nx,y\n", ["--out", "taken"], "taken.report.html is there already: give --replace"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    content: bytes,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_bytes(content)
    (tmp_path / "taken.report.html").write_text("")
    (tmp_path / "taken.report").mkdir()
    assert main(["quick", "rows.csv", "--yes", *options]) == 2
    assert message in capsys.readouterr().err
