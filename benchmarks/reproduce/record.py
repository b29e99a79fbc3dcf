"""The record of one training of a reproduction, as JSON values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduce.checkpoint import Answers
from laplora.features.store import digest
from laplora.files.atomic import write_json
from laplora.metrics.scores import bootstrap_interval, evaluate_probs, row_nll
from training.config import RunConfig, config_hash_fields
from training.workspace.run import Run

#: The file of a training's record, in its folder.
RECORD = "reproduction.json"


def begun(run: Run, model: str, steps: tuple[int, ...]) -> dict[str, Any]:
    """Return a training's record before anything is measured."""
    config, splits = run.config, run.splits
    optimizer, base = config.optimizer, config.base
    return {
        "model": model,
        "base": base.model,
        "quantization": base.quantization,
        "dtype": base.dtype,
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type,
        "task": config.data.dataset,
        "source": splits.report["source_detail"],
        "seed": config.seed,
        "steps": list(steps),
        "batch_size": optimizer.step_rows,
        "learning_rate": optimizer.peak_rate,
        "targets": list(config.adapter.targets),
        "structure": config.laplace.structure,
        "prior": config.laplace.prior,
        "settings": settings_digest(config),
        "rows": {name: len(getattr(splits, name)) for name in ("train", "calibration", "test")},
        "cut": sum(row.truncated for row in run.encode(splits.test)),
        "checkpoints": {},
    }


def settings_digest(config: RunConfig) -> str:
    """Return the digest of all that the seeds of one model and task have in common."""
    fields = config_hash_fields(config)
    for name in ("device", "device_map", "max_memory"):
        fields["base"].pop(name, None)
    return digest({name: value for name, value in fields.items() if name not in ("name", "seed")})


def scores(answers: Answers) -> dict[str, dict[str, Any]]:
    """Return by method its metrics on labelled rows; means over rows with their 95 % bootstrap intervals.

    ``gap`` is the mean largest probability less the accuracy: above 0 overconfident, below 0 underconfident.
    """
    by_method = {}
    for method, probs in answers.probs.items():
        evaluation = evaluate_probs(probs, answers.labels, resamples=0)
        confidence, guess = probs.max(1)
        hits = (guess == answers.labels).double()
        means = {"accuracy": hits, "nll": row_nll(probs, answers.labels), "gap": confidence.double() - hits}
        by_method[method] = _rounded(
            {
                **{name: getattr(evaluation, name) for name in ("accuracy", "nll", "ece", "brier", "aurc")},
                "gap": float(means["gap"].mean()),
                "intervals": {name: _interval(values) for name, values in means.items()},
            }
        )
    return by_method


def _rounded(value: Any) -> Any:
    """Return JSON values with every float rounded to six digits: more would be other ones on every processor."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def _interval(values: torch.Tensor) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    return list(bootstrap_interval(lambda rows: values[rows].mean(1), len(values), generator=generator))


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a training's record into its folder, whole."""
    write_json(folder / RECORD, dict(record))


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record in a training's folder; None where none is."""
    path = folder / RECORD
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record
