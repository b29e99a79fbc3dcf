"""Curves of fine-tuning go where the configuration says; a package that is missing is named before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from alike_runs import read
from tiny_runs import job, sentiment_config

from training.config import load_config


def test_a_package_that_is_missing_is_named_first(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    file = sentiment_config(tmp_path, tiny_base_folder)
    assert job("run", file, "report_to=[mlflow]", "data.path=nowhere.jsonl") == 1
    assert "report_to: not installed: mlflow: pip install mlflow" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_tensorboard_has_the_log(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    optimizer = {"learning_rate": 1e-2, "steps": 8, "batch_size": 6, "evaluate_every": 4}
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer=optimizer)
    assert job("finetune", file, "report_to=[tensorboard]") == 0
    events = accumulator.EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    log = read(load_config(file).run_dir / "training_log.json")
    losses = {r["step"]: r["eval_loss"] for r in log if "eval_loss" in r}
    assert {one.step: pytest.approx(one.value) for one in events.Scalars("eval/loss")} == losses
    assert len(events.Scalars("train/loss")) == 8
