"""Files answered and measured in blocks by this process: the lines of ``laplora predict``, and going on."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rows import write_parquet
from tiny_runs import FinishedRun, sentiment_rows, write_rows

from laplora.bulk.answering import How
from laplora.bulk.evaluate import Labelled, evaluate_file, measure_window
from laplora.bulk.score import Scored, answer_window, score_file
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


def scored(run: FinishedRun, source: Path, target: Path, **options: Any) -> Scored:
    return score_file(run.artifact, source, target, **{"device": "cpu", "window": 8, "batch_size": 4, **options})


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
    assert b"without an answer: 10, 99\n98 inputs, 2 of them" in capfdbinary.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_run_that_was_interrupted_goes_on_where_it_was(
    sentiment_run: FinishedRun, source: Path, tmp_path: Path
) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("5 of"):
            raise KeyboardInterrupt

    target, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    with pytest.raises(KeyboardInterrupt):
        scored(sentiment_run, source, target, progress=interrupt)
    assert not target.exists()
    assert len(list(parts.glob("*.jsonl"))) == 5
    with pytest.raises(ConfigError, match=r"of another run.*batch_size was 4, is 2"):
        scored(sentiment_run, source, target, batch_size=2)
    kept = (parts / "000002.jsonl").read_bytes()
    times = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    again: list[str] = []

    def still_the_same(line: str) -> None:
        again.append(line)
        assert {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}.items() >= times.items()

    assert scored(sentiment_run, source, target, progress=still_the_same) == Scored(98, 2, (10, 99))
    assert again[0] == "going on: 5 of 13 blocks are finished"
    assert kept in target.read_bytes()
    assert not parts.exists()
    scored(sentiment_run, source, tmp_path / "whole.jsonl")
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.fixture
def overflowing(sentiment_run: FinishedRun) -> Predictor:
    """A predictor without a finite answer to what has a zebra in it."""
    predictor = Predictor.load(sentiment_run.artifact, device="cpu")
    (odd,) = predictor.tokenizer(" zebra", add_special_tokens=False)["input_ids"][-1:]

    def overflow(_module: object, given: tuple[torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        return states.masked_fill((given[0] == odd)[..., None], torch.nan)

    predictor.members.model.get_input_embeddings().register_forward_hook(overflow)
    return predictor


@pytest.mark.parametrize("bad", [0, 37, 63])
def test_one_input_without_a_finite_answer_costs_two_calls_for_each_halving(
    overflowing: Predictor, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, predict_all = list[int](), overflowing.predict_all

    def counted(rows: Any, *more: Any, **options: Any) -> Any:
        calls.append(len(rows))
        return predict_all(rows, *more, **options)

    monkeypatch.setattr(overflowing, "predict_all", counted)
    texts = ["a zebra" if number == bad else "a film" for number in range(64)]
    window = [(number, json.dumps({"text": text}).encode()) for number, text in enumerate(texts)]
    assert [number for number, _, none in answer_window(overflowing, window, How()) if none] == [bad]
    assert len(calls) == 1 + 2 * math.log2(64)
    assert sum(calls) < 3 * 64


def test_an_input_without_a_finite_answer_has_no_answer_alone(overflowing: Predictor) -> None:
    predictor = overflowing
    texts = ["a film", "a zebra", "a play", "a song"]
    window = [(number, json.dumps({"text": text}).encode()) for number, text in enumerate(texts, 1)]
    lines = [(number, json.loads(line), bad) for number, line, bad in answer_window(predictor, window, How())]
    assert [(number, bad) for number, _, bad in lines] == [(1, False), (2, True), (3, False), (4, False)]
    assert lines[1][1]["line"] == 2
    assert "no finite answer" in lines[1][1]["error"]["message"]
    labelled = [(number, json.dumps({"text": text, "label": "positive"}).encode()) for number, text in enumerate(texts)]
    measured = list(measure_window(predictor, labelled, How(), Labelled("rows.jsonl", "label")))
    assert [bad for _, _, bad in measured] == [False, True, False, False]
    assert b"rows.jsonl:1: the model has no finite answer" in measured[1][1]


def test_another_input_does_not_go_on(sentiment_run: FinishedRun, source: Path, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(sentiment_run, source, tmp_path / "out.jsonl", progress=interrupt)
    source.write_bytes(source.read_bytes().replace(b"awful", b"super"))
    with pytest.raises(ConfigError, match="source was"):
        scored(sentiment_run, source, tmp_path / "out.jsonl")


def test_a_target_that_is_there_stays(sentiment_run: FinishedRun, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        scored(sentiment_run, source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_parquet_has_the_answers_of_its_rows_and_columns_of_its_own(sentiment_run: FinishedRun, tmp_path: Path) -> None:
    lines = write_rows(tmp_path / "in.jsonl", ROWS)
    table = write_parquet(tmp_path / "in.parquet", [row | {"year": 1999} for row in ROWS], 11)
    for path, name in ((lines, "a.jsonl"), (table, "b.jsonl")):
        assert scored(sentiment_run, path, tmp_path / name) == Scored(96, 0, ())
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize("ids", [[7, 2**60, -1], [1.5, 2.0, None], ["a", "b", None]])
def test_an_id_of_parquet_comes_back_as_it_was(sentiment_run: FinishedRun, tmp_path: Path, ids: list[Any]) -> None:
    rows = [{"id": given, "text": row["text"]} for given, row in zip(ids, ROWS, strict=False)]
    table = write_parquet(tmp_path / "in.parquet", rows)
    assert scored(sentiment_run, table, tmp_path / "out.jsonl") == Scored(3, 0, ())
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = [answer.get("id") for answer in answers]
    assert found == ids
    assert list(map(type, found)) == list(map(type, ids))
    # The rest of the answer is that of the same row with text for an id; in JSON Lines an id is text, as of the API.
    lines = write_rows(tmp_path / "in.jsonl", [row | {"id": "x"} for row in rows])
    scored(sentiment_run, lines, tmp_path / "text.jsonl")
    others = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert [answer | {"id": "x"} for answer in answers] == others
    lines = write_rows(tmp_path / "numbers.jsonl", [{"id": 7, "text": "a"}])
    assert scored(sentiment_run, lines, tmp_path / "none.jsonl").bad == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_figures_are_those_of_the_whole_file(
    sentiment_run: FinishedRun,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("evaluate", "measuring"):
        monkeypatch.setattr(f"laplora.bulk.{module}.WINDOW", 8)
    rows = [*sentiment_rows(), {"text": "The film was odd.", "label": "negative"}]
    data = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_rows(data, rows)
    else:
        write_parquet(data, rows)
    command = ["evaluate", "-a", str(sentiment_run.artifact), "--data", str(data), "--device", "cpu", "--json"]
    command += ["--resamples", "0"]
    assert main([*command, "--threads", "1"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main([*command, "--parts", str(tmp_path / "parts")]) == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert whole["rows"] == 97
    assert not (tmp_path / "parts").exists()


def test_rows_that_cannot_be_measured_are_said_before_any_is_answered(
    sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "positive"}, *[{"text": "b"}] * 7])
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: field 'label'(?s:.*)\n\.\.\. and 2 more rows"):
        evaluate_file(sentiment_run.artifact, data, tmp_path / "parts", device="cpu")
    write_rows(data, [])
    with pytest.raises(DataError, match="holds no rows"):
        evaluate_file(sentiment_run.artifact, data, tmp_path / "parts", device="cpu")
    assert not (tmp_path / "parts").exists()
    write_rows(data, [{"text": "a", "label": "positive"}, {"text": "word " * 500, "label": "negative"}])
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*tokens"):
        evaluate_file(sentiment_run.artifact, data, tmp_path / "parts", device="cpu")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "--data", "in.jsonl"], "--data and --out go together"),
        (["predict", "--workers", "2"], "--workers needs --data and --out"),
        (["evaluate", "--data", "in.jsonl", "--workers", "2"], "--workers needs --parts"),
        (["evaluate", "--data", "s3://bucket/in.jsonl"], "--data at an address needs --parts"),
        (["evaluate", "--data", "in.jsonl", "--resamples", "5"], "resamples (--resamples) is 0"),
        (["predict", "--data", "a.jsonl", "--out", "b.jsonl"], "no artifact at 'none'"),
    ],
)
def test_options_that_go_together(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "-a", "none"]) == 2
    assert message in capsys.readouterr().err
