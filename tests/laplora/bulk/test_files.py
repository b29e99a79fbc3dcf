"""Files answered and measured in blocks by this process: the lines of ``laplora predict``, its blocks, and going on."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_rows import write_parquet
from tiny_runs import FinishedRun, sentiment_rows, write_rows

from laplora.bulk.answering import How
from laplora.bulk.evaluate import EvaluateJob, evaluate_file
from laplora.bulk.parts import Parts, finished
from laplora.bulk.predict import answer_window, predict_file
from laplora.bulk.workers import Workers
from laplora.commands.app import main
from laplora.errors import ConfigError, DataError
from laplora.predictor import Predictor

ROWS = [{"id": str(number), "text": row["text"]} for number, row in enumerate(sentiment_rows())]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Inputs, of which two have no answer."""
    path = write_rows(tmp_path / "in.jsonl", ROWS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:9], b'{"title": "x"}\n', b"\n", *lines[9:], b"no JSON"]))
    return path


def predicted(
    run: FinishedRun, source: Path | str, target: Path | str, batch_size: int = 4, **options: Any
) -> tuple[int, int]:
    how = How(batch_size=batch_size)
    return predict_file(run.artifact, source, target, how, Workers(device="cpu"), window=8, **options)


def test_the_answers_are_those_of_standard_input(
    sentiment_run: FinishedRun,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    flags = ["-a", str(sentiment_run.artifact), "--device", "cpu", "--lines", "8", "--batch-size", "4"]
    assert main(["predict", *flags, "--threads", "1"]) == 1
    expected = capfdbinary.readouterr().out
    monkeypatch.setattr("laplora.bulk.rows.MOST_BLOCKS", 4)
    assert main(["predict", *flags, "--data", str(source), "--out", str(tmp_path / "out.jsonl")]) == 1
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert len(expected.splitlines()) == len(ROWS) + 2
    assert b"98 inputs, 2 of them without an answer" in capfdbinary.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_run_that_was_interrupted_goes_on_where_it_was(
    sentiment_run: FinishedRun, source: Path, tmp_path: Path
) -> None:
    def interrupt_late(line: str) -> None:
        if line.startswith("5 of"):
            raise KeyboardInterrupt

    target, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    with pytest.raises(KeyboardInterrupt):
        predicted(sentiment_run, source, target, progress=interrupt_late)
    assert not target.exists()
    assert len(list(parts.glob("*.jsonl"))) == 5
    with pytest.raises(ConfigError, match=r"of another run.*batch_size was 4, is 2"):
        predicted(sentiment_run, source, target, batch_size=2)
    content = source.read_bytes()
    source.write_bytes(content.replace(b"awful", b"super"))
    with pytest.raises(ConfigError, match="source was"):
        predicted(sentiment_run, source, target)
    source.write_bytes(content)
    times = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    again: list[str] = []

    def still_the_same(line: str) -> None:
        again.append(line)
        assert {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}.items() >= times.items()

    assert predicted(sentiment_run, source, target, progress=still_the_same) == (98, 2)
    assert again[0] == "going on: 5 of 13 blocks are finished"
    assert not parts.exists()
    predicted(sentiment_run, source, tmp_path / "whole.jsonl")
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_target_that_appears_while_rows_are_answered_is_not_overwritten(
    sentiment_run: FinishedRun, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    target, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    if not links:  # as of a file system that knows none
        monkeypatch.setattr("os.link", mock.Mock(side_effect=PermissionError(1, "not permitted")))
    with pytest.raises(ConfigError, match=r"is there already.*finished blocks are kept"):
        predicted(sentiment_run, source, target, progress=lambda _line: target.write_text("mine"))
    assert target.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.parts"]
    target.unlink()
    said: list[str] = []
    assert predicted(sentiment_run, source, target, progress=said.append) == (98, 2)
    assert said == ["going on: 13 of 13 blocks are finished"]
    assert len(target.read_bytes().splitlines()) == 98
    assert not parts.exists()


@pytest.fixture
def overflowing(sentiment_run: FinishedRun) -> Predictor:
    """A predictor without a finite answer to what has a zebra in it."""
    predictor = Predictor.load(sentiment_run.artifact, device="cpu")
    (odd,) = predictor.tokenizer(" zebra", add_special_tokens=False)["input_ids"][-1:]

    def overflow(_module: object, given: tuple[torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        return states.masked_fill((given[0] == odd)[..., None], torch.nan)

    predictor.adapted.model.get_input_embeddings().register_forward_hook(overflow)
    return predictor


def test_an_input_without_a_finite_answer_has_no_answer_alone(
    overflowing: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, predict_all = list[int](), overflowing.predict_all

    def counted(rows: Any, *more: Any, **options: Any) -> Any:
        calls.append(len(rows))
        return predict_all(rows, *more, **options)

    monkeypatch.setattr(overflowing, "predict_all", counted)
    for place in (0, 37, 63):
        calls.clear()
        rows = [{"text": "a zebra" if number == place else "a film"} for number in range(64)]
        window = [(number, json.dumps(row).encode()) for number, row in enumerate(rows)]
        lines = [(json.loads(line), bad) for line, bad in answer_window(overflowing, window, How())]
        assert [number for number, (_, bad) in enumerate(lines) if bad] == [place]
        assert lines[place][0]["line"] == place
        assert "no finite answer" in lines[place][0]["error"]["message"]
        assert len(calls) == 1 + 2 * math.log2(64)  # two for each halving
    labelled = [(number, json.dumps(row | {"label": "positive"}).encode()) for number, row in enumerate(rows)]
    job = EvaluateJob(overflowing.artifact, "cpu", How(), "rows.jsonl", "label")
    with pytest.raises(DataError, match=r"^rows\.jsonl, line 63: the model has no finite answer"):
        list(job.measure_window(overflowing, labelled))


@pytest.mark.parametrize("ids", [[7, 2**60, -1], [1.5, 2.0, None], ["a", "ß", None]])
def test_an_id_comes_back_as_it_was_of_every_format(sentiment_run: FinishedRun, tmp_path: Path, ids: list[Any]) -> None:
    rows = [{"id": given, "text": row["text"], "year": 1999} for given, row in zip(ids, ROWS, strict=False)]
    table = write_parquet(tmp_path / "in.parquet", rows, 2)
    lines = write_rows(tmp_path / "in.jsonl", [{name: row[name] for name in ("id", "text")} for row in rows])
    for path in (table, lines):
        assert predicted(sentiment_run, path, tmp_path / f"{path.suffix}.jsonl") == (3, 0)
    found = [json.loads(line).get("id") for line in (tmp_path / ".parquet.jsonl").read_text().splitlines()]
    assert found == ids
    assert list(map(type, found)) == list(map(type, ids))
    assert (tmp_path / ".jsonl.jsonl").read_bytes() == (tmp_path / ".parquet.jsonl").read_bytes()


def test_the_figures_of_every_format_are_the_same(
    sentiment_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("laplora.bulk.evaluate.WINDOW", 8)
    rows = [*sentiment_rows(), {"text": 'The film was "odd",\nand long.', "label": "negative"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    write_parquet(tmp_path / "rows.parquet", rows)
    cells = ["text,label", *(f'"{row["text"].replace(chr(34), 2 * chr(34))}",{row["label"]}' for row in rows)]
    (tmp_path / "rows.csv").write_text("\n".join(cells))
    found = []
    for kind in ("jsonl", "parquet", "csv"):
        command = ["evaluate", "-a", str(sentiment_run.artifact), "--data", str(tmp_path / f"rows.{kind}"), "--json"]
        assert main([*command, "--device", "cpu", "--resamples", "0", "--parts", str(tmp_path / "parts")]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] == found[2]
    assert found[0]["rows"] == 97
    assert not (tmp_path / "parts").exists()


def test_rows_that_cannot_be_measured_are_said_before_any_is_answered(
    sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "positive"}, *[{"text": "b"}] * 7])
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: field 'label'(?s:.*)\n\.\.\. and 2 more rows"):
        evaluate_file(sentiment_run.artifact, data, parts=tmp_path / "parts")
    write_rows(data, [])
    with pytest.raises(DataError, match="holds no rows"):
        evaluate_file(sentiment_run.artifact, data, parts=tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
    write_rows(data, [{"text": "a", "label": "positive"}, *[{"text": "word " * 500, "label": "negative"}] * 7])
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: .*tokens(?s:.*)\n\.\.\. and 2 more rows"):
        evaluate_file(sentiment_run.artifact, data, workers=Workers(device="cpu"))


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


def test_blocks_come_back_as_they_were_written_and_a_change_is_said(parts: Parts) -> None:
    (parts.folder / f".000002.jsonl.{'0' * 16}").write_bytes(b"a")  # as a killed process leaves it
    found = Parts(parts.folder).begin(RUN)
    assert found.keys() == {0, 1}
    assert (found[1].rows, found[1].bad) == (2, 1)
    assert b"".join(parts.lines([found[0], found[1]])) == b"a\nb\nc\nd\n"
    path = parts.folder / "000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a\n", b"x\n"))
    with pytest.raises(DataError, match="was changed"):
        list(parts.lines([found[0]]))
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


def test_a_record_that_is_damaged_is_said(parts: Parts) -> None:
    record = {"number": 0, "rows": 2, "bad": 0, "sha256": ""}
    texts = ['{"number"', "[]", '{"number": 0}', json.dumps(record | {"rows": "2"}), json.dumps(record | {"number": 1})]
    for name, content in (
        *(("000000.jsonl", text) for text in (*texts, "\xff")),
        ("run.json", "[1]"),
        ("run.json", ""),
    ):
        (parts.folder / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=rf"{name}: is damaged: remove"):
            parts.begin(RUN)


def test_a_second_run_is_refused_and_a_killed_one_holds_nothing(parts: Parts) -> None:
    command = [sys.executable, "-c", HOLDS, str(parts.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"out\.parts: another run works on it now"), parts.held():
            pass
        holder.kill()
    with parts.held():
        assert parts.begin(RUN).keys() == {0, 1}
