"""The adapters of a training's steps that a caller keeps, beside the trained one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from training.workspace.run import Run


def kept_adapter(run: Run, step: int) -> Path:
    """Return the folder of the adapter of a step that a caller of ``train_adapter`` keeps, in the run's own."""
    return run.folder / "kept" / f"step-{step}"


def missing_adapters(run: Run, keep: Collection[int] = ()) -> list[int]:
    """Return the steps whose adapters are to be kept and not there."""
    return [step for step in keep if not (kept_adapter(run, step) / "adapter_model.safetensors").is_file()]
