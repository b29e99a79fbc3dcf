"""``laplora predict`` and ``laplora evaluate`` on the tiny artifact, as a shell runs them, and their ``--fail-if``."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import FinishedRun, sentiment_rows

from laplora.commands.app import main
from laplora.commands.thresholds import MetricThreshold
from laplora.errors import ConfigError
from laplora.metrics.noise import share_interval
from laplora.predictor import Predictor


def predict(
    run: FinishedRun,
    lines: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    *flags: str,
) -> tuple[int, list[dict[str, Any]]]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    status = main(["predict", "--artifact", str(run.artifact), "--device", "cpu", *flags])
    return status, [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("window", [3, 256])
def test_every_line_is_answered_in_order(
    sentiment_run: FinishedRun, window: int, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    texts = ["The film was fine and long and then long again.", "Dull.", "The play was a joy.", "Grey.", "The end."]
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    status, found = predict(sentiment_run, jsonl(rows), monkeypatch, capfdbinary, "--lines", str(window))
    assert status == 0
    full = predict(sentiment_run, jsonl(rows[:1]), monkeypatch, capfdbinary, "--detail", "full")[1][0]
    spread = predict(sentiment_run, jsonl(rows[:1]), monkeypatch, capfdbinary, "--variance", "--predictive", "map")[1][
        0
    ]
    assert (set(found[0]) < set(full), spread["spread_of"]) == (True, "laplace")
    assert min(*spread["logit_variance"], *spread["probs_std"].values(), spread["uncertainty"]["epistemic"]) > 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["predict", "-a", str(sentiment_run.artifact), "--device", "cpu", "--target-risk", "0.0001"]) == 0
    assert b"accepts nothing at an error rate of 0.01 %: every answer goes to review" in capfdbinary.readouterr().err
    assert [one["id"] for one in found] == ["0", "1", "2", "3", "4"]
    predictor = Predictor.load(sentiment_run.artifact, device="cpu")
    expected = predictor.predict([predictor.encode({"text": text}, truncate=False) for text in texts])
    for one, answer in zip(found, expected, strict=True):
        assert one["probs"] == pytest.approx(answer.probs, abs=1e-4)
        assert one["map_probs"] == pytest.approx(answer.map_probs, abs=1e-4)
        assert one["decision_reason"] == answer.decision_reason
        assert one["decision"] == answer.decision


def test_a_line_without_an_answer_has_its_place_and_its_number(
    sentiment_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("laplora.data.lines.LINE_BYTES", 200)
    long = json.dumps({"text": "long " * 100}).encode() + b"\n"
    lines = b'{"text": "a"}\n\nnone\n{"title": "a"}\n\xff\xfe\n' + long + b'[1]\n{"id": [3], "text": "b"}\n'
    lines += b'{"id": "\\ud800", "text": "c"}\n{"\\udfff": "d"}'
    status, found = predict(sentiment_run, lines, monkeypatch, capfdbinary)
    assert status == 1
    assert [one.get("line") for one in found] == [None, 3, 4, 5, 6, 7, 8, None, 10]
    assert found[7]["id"] == "\ud800"
    messages = [one["error"]["message"] for one in found if "error" in one]
    assert "200 bytes" in messages[3]
    assert found[2]["error"]["field"] in ("text", "title")


def evaluate(run: FinishedRun, rows: list[dict[str, Any]], folder: Path, *flags: str) -> int:
    (folder / "rows.jsonl").write_bytes(jsonl(rows))
    return main(["evaluate", "-a", str(run.artifact), "--data", str(folder / "rows.jsonl"), "--device", "cpu", *flags])


ROWS = [
    {"text": "The film was a joy.", "label": "positive"},
    {"text": "The play was dull.", "label": "negative"},
    {"text": "The song was a joy, a joy.", "label": "negative"},
    {"text": "Grey.", "label": "negative"},
]


def test_the_metrics_are_those_of_the_rows_and_a_bar_fails_a_script(
    sentiment_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # None is a calibration row: the one at the threshold is accepted or not by the last bit.
    others = [row | {"text": f"Well. {row['text']}"} for row in sentiment_rows()[:24]]
    rows = [*ROWS, *others, *(row | {"label": "negative"} for row in others[:2])]
    assert evaluate(sentiment_run, rows, tmp_path, "--json", "--predictive", "map", "--fail-if", "map.ece>1") == 0
    found = json.loads(capsys.readouterr().out)
    predictor = Predictor.load(sentiment_run.artifact, device="cpu")
    answers = predictor.predict([predictor.encode({"text": row["text"]}, truncate=False) for row in rows], "map")
    right = [answer.label == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert (found["rows"], found["predictive"], found["failed"]) == (30, "map", False)
    assert found["metrics"]["map"]["accuracy"] == sum(right) / 30
    assert found["artifact"]["digest"] == predictor.artifact.digest
    assert found["bars"][0]["value"] == found["metrics"]["map"]["ece"]
    low, high = found["metrics"]["map"]["intervals"]["accuracy"]
    assert low < sum(right) / 30 < high
    assert found["metrics"]["map"]["ece_limit"] > 0
    accepted, target_risk = found["accepted"], answers[0].rule.target_risk
    wrong = [not hit for hit, answer in zip(right, answers, strict=True) if answer.decision == "accept"]
    assert 0 < sum(wrong) < len(wrong) < 30
    assert accepted.pop("interval") == pytest.approx(share_interval(sum(wrong), len(wrong)))
    figures = ("map", target_risk, len(wrong), len(wrong) / 30, sum(wrong), pytest.approx(sum(wrong) / len(wrong)))
    assert tuple(accepted.values()) == figures
    bars = ("--fail-if", "accuracy<2", "--fail-if", "map.accuracy<-1")
    assert evaluate(sentiment_run, rows, tmp_path, *bars) == 1
    said = capsys.readouterr().out
    line = (
        r"accepted at a target error rate of 5\.0\u00a0%: \d+ of 30 rows \(.*\), .* wrong \(95 %: .* to .*\)\nmethod "
    )
    assert re.match(line, said)
    renamed = [{"mail": row["text"], "kind": row["label"]} for row in rows]
    assert evaluate(sentiment_run, renamed, tmp_path, *bars, "--text", "mail", "--label-field", "kind") == 1
    assert capsys.readouterr().out == said
    assert "FAILED: accuracy<2" in said
    assert "passed: map.accuracy<-1" in said
    assert "laplace *" in said


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (ROWS, ("--fail-if", "ece"), "--fail-if 'ece'"),
        (ROWS, ("--fail-if", "none.ece>1"), "no predictive 'none'"),
        ([], ("--fail-if", "laplace.ece>1", "--predictive", "map"), "no predictive 'laplace' is measured, but map"),
        (ROWS, ("--predictive", "nobody"), "no predictive 'nobody'"),
        ([*ROWS, {"text": "x"}, {"text": "y", "label": "maybe"}], (), "rows.jsonl, line 5"),
        ([], (), "rows.jsonl"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    sentiment_run: FinishedRun, tmp_path: Path, rows: Any, flags: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(sentiment_run, rows, tmp_path, *flags) == 2
    captured = capsys.readouterr()
    assert (message in captured.err, captured.out) == (True, "")


def test_a_report_of_other_rows_shows_texts_only_where_they_are_asked_for(
    sentiment_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(ROWS))
    command = ["report", "-a", str(sentiment_run.artifact), "--data", str(tmp_path / "rows.jsonl"), "--device", "cpu"]
    for flag in ([], ["--texts"]):
        assert main([*command, "--out", str(tmp_path / "r.html"), *flag]) == 0
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert "4 rows of rows.jsonl" in page
        assert ("The song was a joy, a joy." in page) == bool(flag)
    assert "is written" in capsys.readouterr().err
    # Without rows it is the one that the artifact brings.
    assert main(["report", "-a", str(sentiment_run.artifact), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_bytes() == (sentiment_run.artifact / "report" / "report.html").read_bytes()
    assert main(["report", "-a", str(sentiment_run.artifact), "--out", str(tmp_path / "r.html" / "r.html")]) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "--data", "in.jsonl"], "--data and --out go together"),
        (["predict", "--workers", "2"], "--workers needs --data and --out"),
        (["evaluate", "--data", "in.jsonl", "--resamples", "5"], "resamples (--resamples) is 0"),
        (["predict", "--data", "a.jsonl", "--out", "b.jsonl"], "no artifact at 'none'"),
    ],
)
def test_options_that_go_together(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "-a", "none"]) == 2
    assert message in capsys.readouterr().err


METRICS: dict[str, dict[str, Any]] = {
    "map": {"ece": 0.2, "accuracy": 0.8, "auroc_error": None, "intervals": {"accuracy": [0.7, 0.85]}},
    "laplace": {"ece": 0.04, "accuracy": 0.8, "ece_excess": -0.01, "intervals": {"accuracy": [0.75, 0.84]}},
}


@pytest.mark.parametrize(
    ("text", "value", "failed"),
    [
        ("ece>0.05", 0.04, False),
        ("ece>.03", 0.04, True),
        (" ece >= 4e-2 ", 0.04, True),
        ("map.ece>0.05", 0.2, True),
        ("accuracy<0.8", 0.8, False),
        ("accuracy<=0.8", 0.8, True),
        ("accuracy.low<0.7", 0.75, False),
        ("ece_excess>0", -0.01, False),
        ("map.accuracy.high>0.8", 0.85, True),
        ("map.auroc_error<0.6", None, True),  # not measured: a script must not go on as if it had been
    ],
)
def test_it_fails_where_it_is_crossed(text: str, value: float | None, failed: bool) -> None:
    crossed = MetricThreshold.parse(text).check(METRICS, "laplace")
    assert (crossed.value, crossed.failed) == (value, failed)
    assert crossed.predictive == ("map" if "map" in text else "laplace")


NO_BARS = ["", "ece", "ece>", "ece=0.05", "ece>five", "0.05<ece", "a.b.c>1", "ece>1..2", "ece>nan", ".ece>1", "ece>1;x"]


@pytest.mark.parametrize("text", [*NO_BARS, "eces>0.05", "reliability>0", "auroc<0.5"])
def test_what_is_no_bar_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fail-if"):
        MetricThreshold.parse(text)


def test_what_was_not_measured_is_named_with_what_was() -> None:
    for text, named in (("mapp.ece>0.05", "map, laplace"), ("nll.low<0.5", "accuracy")):
        with pytest.raises(ConfigError, match=named):
            MetricThreshold.parse(text).check(METRICS, "laplace")
    with pytest.raises(ConfigError, match="ece_excess>0"):  # the interval of an ECE, with what to use instead
        MetricThreshold.parse("ece.low>0.05")
    # A predictive that there is not is named before anything runs.
    MetricThreshold.parse("map.ece>1").check_predictive(("map", "laplace"))
    with pytest.raises(ConfigError, match=r"map, laplace$"):
        MetricThreshold.parse("mapp.ece>1").check_predictive(("map", "laplace"))
