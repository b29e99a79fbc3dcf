"""The adapters that an ensemble averages over beside the trained one: from which steps or folds, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laplora.errors import ConfigError
from laplora.fitting.members import MemberAdapter
from laplora.predictive.member_adapters import read_weights
from training.config import RunConfig
from training.workspace.folds import fold_runs
from training.workspace.run import Run


@dataclass(frozen=True)
class Kept:
    """One of an ensemble's further adapters: its step, the fold that it was trained without (or None), its folder."""

    step: int
    fold: int | None
    folder: Path


def kept_members(run: Run) -> tuple[Kept, ...]:
    """Return the ensemble's adapters beside the trained one: checkpoints of its training, or those of the folds."""
    config = run.config
    if config.predictives.ensemble == "folds":
        return tuple(
            Kept(fold.config.optimizer.steps, number, fold.folder / "adapter")
            for number, fold in enumerate(fold_runs(run), 1)
        )
    return tuple(Kept(step, None, member_folder(config, step)) for step in member_steps(config))


def member_steps(config: RunConfig) -> tuple[int, ...]:
    """Return the steps whose adapters an ensemble keeps; with the final one, evenly spaced over the second half."""
    count, steps = config.predictives.ensemble, config.optimizer.steps
    if not isinstance(count, int):
        return ()
    first = steps - steps // 2
    return tuple(first + i * (steps - first) // (count - 1) for i in range(count - 1)) if count else ()


def member_folder(config: RunConfig, step: int) -> Path:
    """Return the folder of the adapter kept at a step."""
    return config.run_dir / "members" / f"step-{step}"


def member_adapters(run: Run, model: Any) -> tuple[MemberAdapter, ...]:
    """Return the ensemble's adapters beside the trained one; ConfigError as ``check_kept``."""
    check_kept(run.config)
    return tuple(MemberAdapter(one.step, read_weights(model, one.folder), one.fold) for one in kept_members(run))


def missing_members(config: RunConfig) -> list[int]:
    """Return the steps whose adapters the ensemble needs and the run does not have."""
    return [s for s in member_steps(config) if not (member_folder(config, s) / "adapter_model.safetensors").is_file()]


def check_kept(config: RunConfig) -> None:
    """Raise ConfigError where the run does not have the adapters that its ensemble averages over."""
    if missing := missing_members(config):
        raise ConfigError(f"the adapters of steps {missing} were not kept: run 'python -m training finetune' again")
