"""The reproduced subjects: models with their ready configurations, tasks, and figures that others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.harness.provenance import ROOT
from laplora.errors import ConfigError
from training.config import RunConfig, load_config

_CONFIGS = ROOT / "training" / "configs"

#: Model -> its ready configuration: base, adapter and optimizer are the model's, whatever the task.
MODELS: Mapping[str, str] = {
    "llama2-7b": "winogrande-s-llama2-7b.yaml",
    "llama3-8b": "winogrande-s-llama3-8b.yaml",
    "phi2": "winogrande-s-phi2.yaml",
    "phi3-mini-128k": "winogrande-s-phi3-mini-128k.yaml",
    "smollm2-135m": "winogrande-s-smollm2.yaml",
    "qwen2.5-0.5b": "winogrande-s-qwen2.5-0.5b.yaml",
}
#: Task -> how a table heads it: the six of Yang et al. (arXiv 2308.13111), and SST-2, which a small model can learn.
TASKS: Mapping[str, str] = {
    "winogrande_s": "WG-S",
    "arc_challenge": "ARC-C",
    "arc_easy": "ARC-E",
    "winogrande_m": "WG-M",
    "openbookqa": "OBQA",
    "boolq": "BoolQ",
    "sst2": "SST-2",
}


#: Model -> accuracy, NLL (nats) and ECE that the report gives for WinoGrande-S after 2,500 steps: those of its Table 2,
#: fine-tuned, and of its Table 3, with Laplace-LoRA.
REPORTED: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "llama2-7b": ((0.69, 1.66, 0.26), (0.72, 0.68, 0.20)),
    "llama3-8b": ((0.72, 1.15, 0.24), (0.72, 0.67, 0.19)),
    "phi2": ((0.69, 1.56, 0.26), (0.73, 0.67, 0.20)),
    "phi3-mini-128k": ((0.72, 0.81, 0.13), (0.74, 0.60, 0.03)),
}


def run_config(
    model: str, task: str, seed: int, out: Path, steps: int | None, every: int | None, overrides: Sequence[str]
) -> RunConfig:
    """Return the configuration of one training: a model's ready one, on another task.

    Every seed has the same calibration and test rows (``data.split_seed`` 0), so that seeds differ by their training.

    Raises:
        ConfigError: an override that no run takes.
    """
    fixed = [
        f"name={model}-{task}-{seed}",
        f"seed={seed}",
        f"data.dataset={task}",
        "data.split_seed=0",
        f"runs={out}",
        f"artifacts={out / 'artifacts'}",
    ]
    fixed += [f"optimizer.steps={steps}"] if steps else []
    fixed += [f"optimizer.checkpoint_every={every}"] if every else []
    return load_config(_CONFIGS / MODELS[model], [*fixed, *overrides])


def check_reproducible(config: RunConfig, task: str) -> None:
    """Raise ConfigError for overrides under which checkpoints, tasks or seeds could not be compared."""
    if config.optimizer.evaluate_every:
        raise ConfigError("reproduce measures every checkpoint itself: leave out optimizer.evaluate_every")
    if config.calibration.cross_fits:
        raise ConfigError("reproduce calibrates every checkpoint on the same rows: leave out calibration.rows")
    if config.data.split_seed is None:
        raise ConfigError("reproduce asks every seed the same test rows: give data.split_seed a number")
    if config.data.dataset != task:
        raise ConfigError(f"reproduce takes its data sets by --tasks: leave out data.dataset={config.data.dataset}")


def checkpoints(config: RunConfig) -> tuple[int, ...]:
    """Return the steps of a configuration that is filled in that are measured: every checkpoint, and the last step."""
    steps, every = config.optimizer.step_count, config.optimizer.checkpoint_every
    return (*range(every, steps, every), steps)
