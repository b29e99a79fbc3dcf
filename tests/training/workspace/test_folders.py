"""A run's folder belongs to one configuration: another one gets another folder, and nothing is deleted for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alike_runs import read
from filelock import FileLock
from tiny_runs import job

from laplora.artifact.folder import read_artifact
from training.config import load_config
from training.config.folders import configuration_digest, owner
from training.finetune import LabelTrainer
from training.workspace.folders import claim, start_from


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_trial_with_fewer_steps_leaves_the_finished_run_and_its_artifact_alone(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = load_config(run_copy)
    assert job("finetune", run_copy) == 0  # writes which rows there are, by their own path
    assert job("package", run_copy) == 0
    before = [digests(plain.run_dir), digests(plain.artifact_dir)]
    assert {"adapter/adapter_model.safetensors", "laplace/posterior.safetensors", "laplace/fit.json"} <= before[
        0
    ].keys()
    trial = load_config(run_copy, ["optimizer.steps=5"])
    assert trial.run_dir.parent == plain.run_dir.parent
    assert job("run", run_copy, "optimizer.steps=5") == 0
    printed = capsys.readouterr().out
    assert f"{plain.run_dir} belongs to another configuration; this one's results go to {trial.run_dir}" in printed
    assert read_artifact(trial.artifact_dir).name == trial.run_dir.name != plain.name
    assert job("finetune", run_copy, "optimizer.steps=5") == 0
    assert f"adapter already trained: {trial.run_dir}" in capsys.readouterr().out
    assert [digests(plain.run_dir), digests(plain.artifact_dir)] == before


def test_another_posterior_starts_from_the_adapter_that_is_there(
    run_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter depends neither on the posterior's settings nor on fields that an older record lacks."""
    plain = load_config(run_copy).run_dir
    record = read(plain / "config.json")
    del record["evaluation"]
    (plain / "config.json").write_text(json.dumps(record))
    before = digests(plain)
    monkeypatch.setattr(LabelTrainer, "train", None)
    assert job("package", run_copy) == 0
    assert f"the adapter was trained already, in {plain}: starting from what lies there" in capsys.readouterr().out
    assert job("finetune", run_copy, "laplace.rank=3") == 0
    assert job("fit", run_copy, "laplace.rank=3") == 0
    kept = digests(load_config(run_copy, ["laplace.rank=3"]).run_dir)
    for name in ("adapter/adapter_model.safetensors", "initial_adapter/adapter_model.safetensors"):
        assert kept[name] == before[name]
    assert kept["laplace/posterior.safetensors"] != before["laplace/posterior.safetensors"]
    assert digests(plain) == before


def test_the_adapter_of_another_training_is_not_taken(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change in ("adapter.rank=2", "max_tokens=12", "optimizer.steps=5", "base.dtype=bfloat16"):
        assert job("fit", run_copy, change) == 1
        assert "no trained adapter in" in capsys.readouterr().err, change


def test_what_changes_no_result_changes_no_folder(run_copy: Path) -> None:
    """Nor does a default that is named."""
    plain = load_config(run_copy).run_dir
    for override in (
        *("golden_inputs=[{text: x}]", "base.device=cuda:1", "base.dequantize=false", "artifacts=elsewhere"),
        "calibration.rows=held_out",
        "laplace.many_classes.limit=16",
    ):
        assert load_config(run_copy, [override]).run_dir == plain, override
    changes = ["seed=7", "max_tokens=12", "adapter.rank=2", "laplace.rank=3", "evaluation.report_texts=true"]
    changes += ["laplace.many_classes.directions=5"]
    changes += ["calibration.rows=cross_fit", "calibration.folds=4", "calibration.coverage=0.8"]
    assert len({plain, *(load_config(run_copy, [one]).run_dir for one in changes)}) == 1 + len(changes)


def test_of_jobs_that_start_together_one_has_the_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda seed: claim(tmp_path / "n", {"seed": seed}), range(32)))
    assert sum(won) == 1
    assert owner(tmp_path / "n") == configuration_digest({"seed": won.index(True)})


def test_another_job_in_the_same_folder_is_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = load_config(run_copy).run_dir
    with FileLock(folder / ".lock"):
        assert job("package", run_copy) == 1
    assert f"another job works in {folder}" in capsys.readouterr().err
    assert job("package", run_copy) == 0


def test_two_containers_have_one_process_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So temporary names must not be made of it: a second copy that fails takes nothing of the first one's away."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    source = tmp_path / "n"
    (source / "adapter").mkdir(parents=True)
    copytree, nested = shutil.copytree, []

    def slow(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(shutil, "copytree", copytree)
        made = copytree(*arguments, **options)
        nested.append(start_from(source, tmp_path / "n-1", {"seed": 1}))
        return made

    monkeypatch.setattr(shutil, "copytree", slow)
    assert not start_from(source, tmp_path / "n-1", {"seed": 1})
    assert nested == [True]
    assert sorted(digests(tmp_path / "n-1")) == ["config.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n", "n-1"]


def test_a_copy_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "n"
    for name in ("adapter/weights", "checkpoints/checkpoint-5/state", "earlier-1/adapter/weights", ".adapter.77"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    assert claim(source, {"seed": 0})
    assert start_from(source, tmp_path / "n-1", {"seed": 1})
    assert sorted(digests(tmp_path / "n-1")) == ["adapter/weights", "config.json"]
    assert owner(tmp_path / "n-1") == configuration_digest({"seed": 1})
    assert not start_from(source, tmp_path / "n-1", {"seed": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n", "n-1"]
