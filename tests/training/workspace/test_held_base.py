"""All steps of a run share one base model and one reading of the rows, and their results are those of separate jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from alike_runs import read
from safetensors.torch import load_file
from tiny_runs import job, same, sentiment_config

from training.config import load_config
from training.workspace import run as run_module
from training.workspace import runtime

SETTINGS: dict[str, Any] = {
    "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "optimizer": {"learning_rate": 1e-2, "steps": 8, "batch_size": 6},
    "calibration": {"rows": "cross_fit", "folds": 2},
}


def test_a_run_loads_once_what_its_jobs_load_each(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three trainings, a fit and an evaluation: bit for bit the tensors of four jobs, adapted and tied lm_head too."""
    for name in ("together", "apart"):
        (tmp_path / name).mkdir()
    together, apart = (sentiment_config(tmp_path / n, tiny_base_folder, **SETTINGS) for n in ("together", "apart"))
    loads, reads = Mock(wraps=run_module.load_base_model), Mock(wraps=runtime.load_splits)
    monkeypatch.setattr(run_module, "load_base_model", loads)
    monkeypatch.setattr(runtime, "load_splits", reads)
    assert job("run", together) == 0
    assert (loads.call_count, reads.call_count) == (1, 1)
    for name in ("finetune", "fit", "evaluate", "package"):
        assert job(name, apart) == 0
    one, other = load_config(together).run_dir, load_config(apart).run_dir
    files = sorted(path.relative_to(other) for path in other.rglob("*.safetensors") if "checkpoints" not in path.parts)
    assert {"adapter", "folds", "laplace", "report"} <= {path.parts[0] for path in files}
    for path in files:
        assert same(load_file(one / path), load_file(other / path)), path
    assert read(one / "report" / "evaluation.json") == read(other / "report" / "evaluation.json")
