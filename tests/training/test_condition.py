"""The job that conditions an artifact on a file of labels, and undoes it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from test_entry import rows_of
from tiny_runs import FinishedRun, write_rows

from laplora.artifact.folder import read_artifact
from training.__main__ import main


@pytest.fixture
def artifact(sentiment_run: FinishedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sentiment_run.artifact, tmp_path / "tiny"))


def test_it_makes_a_version_beside_and_in_place_and_undoes_it(
    artifact: Path, sentiment_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, before = rows_of(sentiment_run), read_artifact(artifact)
    labels = write_rows(tmp_path / "labels.jsonl", rows["test"])
    command = ["condition", "--artifact", str(artifact), "--device", "cpu"]
    given = [*command, "--labels", str(labels), "--force"]
    assert main([*given, "--out", str(tmp_path / "beside")]) == 0
    assert read_artifact(artifact).digest == before.digest
    beside = read_artifact(tmp_path / "beside").manifest
    assert beside.name == "beside"
    assert beside.experts["conditioned"].rows == len(rows["test"]) + len(rows["calibration"])
    capsys.readouterr()
    assert main(given) == 0
    out = capsys.readouterr().out
    assert f"{len(rows['test'])} new rows" in out
    assert "answers by" in out
    assert read_artifact(artifact).digest != before.digest
    assert read_artifact(artifact).name == before.name != artifact.name
    assert main([*command, "--undo"]) == 0
    assert read_artifact(artifact).digest == before.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --labels FILE"),
        (["--undo", "--labels", "fine.jsonl"], "give --labels FILE"),
        (["--undo", "--force"], "takes no other option"),
        (["--undo"], "nothing to undo"),
        (["--labels", "no-such.jsonl"], "no-such.jsonl"),
        (["--labels", "odd.jsonl"], r"odd.jsonl, line 2: .*so so"),
    ],
)
def test_what_cannot_be_is_refused(
    artifact: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(artifact.parent)
    fine = {"text": "Dull.", "label": "negative"}
    write_rows(Path("fine.jsonl"), [fine])
    write_rows(Path("odd.jsonl"), [fine, {"text": "Dull!", "label": "so so"}])
    packaged = read_artifact(artifact)
    assert main(["condition", "--artifact", str(artifact), *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert read_artifact(artifact).digest == packaged.digest
