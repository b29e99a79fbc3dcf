"""``python -m training suggest``: from a file without labels to a file in the order to label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import FinishedRun, sentiment_rows, write_rows

from training.__main__ import main


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [{"id": f"r{i}", "text": row["text"]} for i, row in enumerate(sentiment_rows()[:12])]
    return write_rows(tmp_path / "pool.jsonl", [*rows, rows[0] | {"id": "again"}])


def suggested(pool: Path) -> list[dict[str, Any]]:
    lines = pool.with_suffix(".suggested.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_rows_come_in_the_order_to_label(
    sentiment_run: FinishedRun, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["suggest", "--artifact", str(sentiment_run.artifact), "--pool", str(pool), "--n", "5"])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert "5 of 13 rows chosen; 1 repeat an earlier one" in shown.out
    given = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    lines = suggested(pool)
    assert len(lines) == len({line["id"] for line in lines}) == 5
    gains = [line["suggested"]["gain"] for line in lines]
    assert gains == sorted(gains, reverse=True)
    for line in lines:
        reasons = line["suggested"]
        assert {"id": line["id"], "text": line["text"]} == given[reasons["row"]]
        assert reasons["predicted"] == max(reasons["probs"], key=lambda label: reasons["probs"][label])
        assert 0 <= reasons["entropy"] <= 0.6932
        assert 0 < reasons["familiarity"] <= 1
    # Labelled in place and suggested again it is a pool.
    labelled = write_rows(pool.with_name("labelled.jsonl"), [line | {"label": "positive"} for line in lines])
    assert main(["suggest", "--artifact", str(sentiment_run.artifact), "--pool", str(labelled), "--n", "3"]) == 0
    assert len(suggested(labelled)) == 3


def test_unfamiliar_rows_are_left_out_and_rows_that_may_have_labels_are_not_overwritten_unasked(
    sentiment_run: FinishedRun, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["suggest", "--artifact", str(sentiment_run.artifact), "--pool", str(pool)]
    assert main(command) == 0
    every = sorted(line["suggested"]["familiarity"] for line in suggested(pool))
    out = write_rows(pool.with_suffix(".suggested.jsonl"), [{"text": "fine", "label": "positive"}])
    before = out.read_bytes()
    assert main(command) == 1
    assert "may have labels by now" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*command, "--out", str(out), "--least-familiarity", str(every[6])]) == 0
    kept = sorted(line["suggested"]["familiarity"] for line in suggested(pool))
    assert kept == [one for one in every if one >= every[6]]
    assert ("are too unlike the training rows" in capsys.readouterr().out) == (len(kept) < len(every))


def test_what_cannot_be_is_said(
    sentiment_run: FinishedRun, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_rows(tmp_path / "other.jsonl", [{"question": "which?"}])
    for given, message in (
        ((pool, "--out", pool), "is the pool itself"),
        ((pool, "--n", 0), "ask for at least 1"),
        ((other,), "'text' is missing"),
    ):
        assert main(["suggest", "--artifact", str(sentiment_run.artifact), "--pool", *map(str, given)]) == 1
        assert message in capsys.readouterr().err
