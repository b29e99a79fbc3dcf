"""The adapters that an ensemble averages over beside the final one: at which steps they are kept, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laplora.errors import ConfigError
from laplora.fitting.members import MemberAdapter
from laplora.predictive.member_adapters import read_weights
from training.config import RunConfig


def member_steps(config: RunConfig) -> tuple[int, ...]:
    """Return the steps whose adapters an ensemble has; with the final one, evenly spaced over the second half."""
    count, steps = config.predictives.ensemble, config.optimizer.steps
    first = steps - steps // 2
    return tuple(first + i * (steps - first) // (count - 1) for i in range(count - 1)) if count else ()


def member_folder(config: RunConfig, step: int) -> Path:
    """Return the folder of the adapter kept at a step."""
    return config.run_dir / "members" / f"step-{step}"


def member_adapters(config: RunConfig, model: Any) -> tuple[MemberAdapter, ...]:
    """Return the ensemble's adapters beside the trained one; ConfigError as ``check_kept``."""
    check_kept(config)
    return tuple(MemberAdapter(step, read_weights(model, member_folder(config, step))) for step in member_steps(config))


def missing_members(config: RunConfig) -> list[int]:
    """Return the steps whose adapters the ensemble needs and the run does not have."""
    return [s for s in member_steps(config) if not (member_folder(config, s) / "adapter_model.safetensors").is_file()]


def check_kept(config: RunConfig) -> None:
    """Raise ConfigError where the run does not have the adapters that its ensemble averages over."""
    if missing := missing_members(config):
        raise ConfigError(f"the adapters of steps {missing} were not kept: run 'python -m training finetune' again")
