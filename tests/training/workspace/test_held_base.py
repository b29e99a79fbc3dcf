"""All steps of a run share one base model and one reading of the rows, and their results are those of separate jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import job, sentiment_config

from training.config import load_config
from training.workspace import run as run_module
from training.workspace import runtime

SETTINGS: dict[str, Any] = {
    "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "optimizer": {"learning_rate": 1e-2, "steps": 8, "batch_size": 6},
    "calibration": {"rows": "cross_fit", "folds": 2},
}


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    calls: list[str] = []
    original = getattr(module, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_a_run_loads_once_what_its_jobs_load_each(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three trainings, a fit and an evaluation: bit for bit the tensors of four jobs, adapted and tied lm_head too."""
    folders = []
    for name in ("together", "apart"):
        (tmp_path / name).mkdir()
        folders.append(sentiment_config(tmp_path / name, tiny_base_folder, **SETTINGS))
    together, apart = folders
    loads = counted(monkeypatch, run_module, "load_base_model")
    reads = counted(monkeypatch, runtime, "load_splits")
    assert job("run", together) == 0
    assert (len(loads), len(reads)) == (1, 1)
    for name in ("finetune", "fit", "evaluate", "package"):
        assert job(name, apart) == 0
    one, other = load_config(together).run_dir, load_config(apart).run_dir
    files = sorted(path.relative_to(other) for path in other.rglob("*.safetensors") if "checkpoints" not in path.parts)
    assert {"adapter", "folds", "laplace", "report"} <= {path.parts[0] for path in files}
    for path in files:
        left, right = load_file(one / path), load_file(other / path)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), path
    metrics = [json.loads((folder / "report" / "evaluation.json").read_text()) for folder in (one, other)]
    assert metrics[0] == metrics[1]
