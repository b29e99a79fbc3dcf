"""The results of a run's earlier jobs, and whether they were made from exactly this run's inputs."""

from __future__ import annotations

import json
from typing import Any

from safetensors import safe_open

from laplora.errors import ConfigError
from laplora.models.adapters import attach_adapter
from training.workspace.folds import fold_runs
from training.workspace.provenance import adapter_inputs, evaluation_inputs, fit_inputs
from training.workspace.run import Run


def trained_as(run: Run) -> bool:
    """Return whether what lies in the run's folder was trained, or begun, from exactly this run's inputs."""
    path = run.folder / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("made_from") == adapter_inputs(run)


def load_trained(run: Run) -> Any:
    """Return the run's base with its adapter; ConfigError as ``check_trained``, also of the folds' adapters."""
    for one in (run, *fold_runs(run)):
        check_trained(one)
    return run.adapted(lambda base: attach_adapter(base, run.folder / "adapter"))


def check_trained(run: Run) -> None:
    """Raise ConfigError where the run has no trained adapter, or one trained from something else."""
    folder = run.folder / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(f"no trained adapter in {folder}: run 'python -m training finetune' first")
    if not trained_as(run):
        raise ConfigError(
            f"the adapter in {folder} was trained from another configuration, other rows or another base: run "
            "'python -m training finetune' again, or give this run another name"
        )


def verify_fitted(run: Run) -> None:
    """Raise ConfigError where there is no fitted posterior, or it was fitted from something else."""
    path = run.config.run_dir / "laplace" / "fit.json"
    if not path.is_file():
        raise ConfigError(f"no fitted posterior in {path.parent}: run 'python -m training fit' first")
    if json.loads(path.read_text()).get("made_from") != fit_inputs(run):
        raise ConfigError(
            f"the posterior in {path.parent} was fitted from another configuration, other rows or another adapter: "
            "run 'python -m training fit' again"
        )


def verify_evaluated(run: Run) -> None:
    """Raise ConfigError where nothing was measured, or on something else."""
    folder = run.config.run_dir / "report"
    if not (folder / "evaluation.json").is_file() or not (folder / "test.safetensors").is_file():
        raise ConfigError(f"no evaluation in {folder}: run 'python -m training evaluate' first")
    with safe_open(folder / "test.safetensors", framework="pt") as file:
        made_from = (file.metadata() or {}).get("made_from")
    if made_from != evaluation_inputs(run):
        raise ConfigError(
            f"the evaluation in {folder} is of another fit or other test rows: run 'python -m training evaluate' again"
        )
