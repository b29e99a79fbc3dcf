"""A run begins with heads on the base as it is, which serve until what is fine-tuned takes their place."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from tiny_runs import job, sentiment_config

from laplora.artifact.folder import read_artifact
from laplora.artifact.report_page import read_report
from laplora.execution.terminal import program
from laplora.fitting.saving import read_fit
from laplora.predictor import Predictor
from training.config import load_config

STEPS = {"learning_rate": 1e-2, "steps": 16, "batch_size": 6, "checkpoint_every": 8}
#: Printed of the passes over the 72 labelled rows.
PASSES = "labelled rows: 72/72"


def test_heads_serve_first_and_what_is_fine_tuned_takes_their_place(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base runs the labelled rows once. A run that is repeated never puts the heads back."""
    file = sentiment_config(
        tmp_path, tiny_base_folder, fine_tune=False, experts={"encoder": None}, predictives={}, optimizer=STEPS
    )
    config = load_config(file)
    assert job("run", file) == 0
    first, shown = read_artifact(config.artifact_dir), capsys.readouterr().out
    assert f"serve it: {program()} serve {first.path}" in shown
    assert "[1/1] frozen fit" in shown
    assert PASSES in shown
    assert (first.manifest.has_adapter, list(first.manifest.experts)) == (False, ["frozen"])
    assert first.manifest.experts["frozen"].rows == 72
    assert first.manifest.metrics["frozen"]["rows"] == 24
    predictor = Predictor.load(first.path, device="cpu")  # replays its golden answers
    assert predictor.recommended == "frozen"
    page = read_report(first)
    assert page is not None
    texts = (config.run_dir / "frozen" / "report.html").read_text()
    assert [b"The remake was" in page, "The remake was" in texts] == [False, True]
    assert b"Fine-tuning gained" not in page
    assert b"Do not fine-tune" not in page

    assert job("run", file) == 0
    assert "of the same rows and settings" in capsys.readouterr().out
    assert read_artifact(first.path).digest == first.digest

    assert job("run", file, "fine_tune=auto") == 0
    left = first.manifest.recommended.table["frozen"]["nll"] / math.log(2)
    shown = capsys.readouterr().out
    assert f"fine-tuning, by the rule of auto: heads leave {left:.0%} of the labels' entropy, with 36 rows a" in shown
    assert read_artifact(first.path).manifest.has_adapter == (0.25 <= left <= 0.75)

    assert job("run", file, "fine_tune=true") == 0
    second, shown = read_artifact(first.path), capsys.readouterr().out
    assert re.search(f"\n(Do not fine-tune|Fine-tuning gained).*\nserve it: {program()} serve {second.path}\n", shown)
    assert PASSES not in shown
    assert second.manifest.has_adapter
    fit = read_fit(config.run_dir / "laplace")
    assert fit.fine_tuning is not None
    assert fit.fine_tuning.rows == 32
    said = str(fit.fine_tuning)
    assert second.manifest.data["fine_tuning"] == said
    assert said in shown
    assert said.encode() in (read_report(second) or b"")
    assert {"frozen", "pooled"} & set(fit.calibrated.predictives)
    assert second.manifest.data["made_from"] == first.manifest.data["made_from"]

    for override in ("fine_tune=true", "fine_tune=false", "fine_tune=auto"):
        assert job("run", file, override) == 0
        assert read_artifact(first.path).manifest.has_adapter
        assert PASSES not in capsys.readouterr().out


def test_other_rows_are_fitted_anew(tiny_base_folder: Path, tmp_path: Path) -> None:
    """A bound that no head can give is asked for, and not promised."""
    file = sentiment_config(
        tmp_path, tiny_base_folder, fine_tune=False, calibration={"guarantee": "upper_bound", "target_risk": 0.2}
    )
    folder = load_config(file).artifact_dir
    assert job("run", file) == 0
    before = read_artifact(folder).manifest
    assert before.predictives["frozen"].thresholds.review.guarantee == "empirical"
    rows = [json.loads(line) for line in (tmp_path / "reviews.jsonl").read_text().splitlines()]
    rows[0]["text"] += " Truly."
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert job("run", file) == 0
    assert read_artifact(folder).manifest.data["made_from"] != before.data["made_from"]
