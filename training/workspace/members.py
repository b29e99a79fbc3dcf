"""The adapters beside the trained one: an ensemble's and those of kept steps; from which steps or folds, and where."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laplora.errors import ConfigError
from laplora.fitting.members import MemberAdapter
from laplora.predictive.member_adapters import read_weights
from training.config import RunConfig
from training.workspace.folds import fold_runs
from training.workspace.run import Run
from training.workspace.selection import adapter_step


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
            Kept(adapter_step(fold), number, fold.folder / "adapter") for number, fold in enumerate(fold_runs(run), 1)
        )
    return tuple(Kept(step, None, member_folder(config, step)) for step in member_steps(config))


def member_steps(config: RunConfig) -> tuple[int, ...]:
    """Return the steps whose adapters an ensemble keeps; with the final one, evenly spaced over the second half."""
    count, steps = config.predictives.ensemble, config.optimizer.step_count
    if not isinstance(count, int):
        return ()
    first = steps - steps // 2
    return tuple(first + i * (steps - first) // (count - 1) for i in range(count - 1)) if count else ()


def member_folder(config: RunConfig, step: int) -> Path:
    """Return the folder of the adapter kept at a step."""
    return config.run_dir / "members" / f"step-{step}"


def kept_adapter(run: Run, step: int) -> Path:
    """Return the folder of the adapter of a step that a caller of ``train_adapter`` keeps, in the run's own."""
    return run.folder / "kept" / f"step-{step}"


def kept_folders(run: Run, keep: Collection[int]) -> dict[int, list[Path]]:
    """Return by step the folders that its adapter is written to: the ensemble's, and those of the steps to ``keep``."""
    folders: dict[int, list[Path]] = {}
    for step in member_steps(run.config):
        folders.setdefault(step, []).append(member_folder(run.config, step))
    for step in keep:
        folders.setdefault(step, []).append(kept_adapter(run, step))
    return folders


def missing_adapters(run: Run, keep: Collection[int] = ()) -> list[int]:
    """Return the steps whose adapters are wanted and not there."""
    return [step for step, folders in kept_folders(run, keep).items() if not all(map(_is_whole, folders))]


def member_adapters(run: Run, model: Any) -> tuple[MemberAdapter, ...]:
    """Return the ensemble's adapters beside the trained one; ConfigError as ``check_kept``."""
    check_kept(run.config)
    return tuple(MemberAdapter(one.step, read_weights(model, one.folder), one.fold) for one in kept_members(run))


def check_kept(config: RunConfig) -> None:
    """Raise ConfigError where the run does not have the adapters that its ensemble averages over."""
    if missing := [step for step in member_steps(config) if not _is_whole(member_folder(config, step))]:
        raise ConfigError(f"the adapters of steps {missing} were not kept: run 'python -m training finetune' again")


def _is_whole(folder: Path) -> bool:
    return (folder / "adapter_model.safetensors").is_file()
