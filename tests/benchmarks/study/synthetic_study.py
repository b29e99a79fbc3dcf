"""A study as ``python -m benchmarks.study`` leaves it, from known distributions: what to publish without a model.

Labels are drawn from the softmax of known logits, so a method that multiplies them by 1 is calibrated and one that
multiplies them by more is overconfident; every seed adds its own noise to the logits of the same rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from laplora.metrics.ranking import error_auroc

#: Method -> (title, family, factor on the logits).
METHODS = {
    "map": ("MAP", "map", 3.0),
    "temperature": ("temperature scaling", "temperature", 0.9),
    "ekfac_validation_scalar": ("EKFAC, validation, scalar", "laplace", 0.95),
    "ekfac_evidence_scalar": ("EKFAC, evidence, scalar", "laplace", 0.2),
    "ensemble": ("checkpoint ensemble", "ensemble", 1.8),
}


#: Methods with prediction sets; the recommended ones are among them.
SETS = ("map", "temperature", "ekfac_validation_scalar")

BASE = {"model": "/models/tiny", "quantization": "nf4"}
CONFIGURATION = {"base": BASE, "optimizer": {"learning_rate": 5e-4}}


@dataclass(frozen=True)
class Task:
    """One synthetic task; ``sharpness`` times the methods' factors, so that 1/3 has a calibrated MAP.

    ``orders`` > 0: with averages over so many option orders, which have no noise of the seed's.
    """

    name: str
    rows: int = 90
    classes: int = 2
    sharpness: float = 1.0
    missing: tuple[tuple[str, int], ...] = ()
    recommended: str = "ekfac_validation_scalar"
    orders: int = 0


TASKS = (
    Task("alpha", rows=150),
    Task("beta", classes=4, missing=(("ensemble", 1), ("ekfac_evidence_scalar", 0), ("ekfac_evidence_scalar", 1))),
    Task("gamma", sharpness=1 / 3, recommended="map"),
)


def write_study(runs: Path, tasks: tuple[Task, ...] = TASKS, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> None:
    """Write every task and seed below ``runs/study``; ``changes`` replace fields of every result.json."""
    for task in tasks:
        for seed in seeds:
            write_seed(runs / "study" / task.name / str(seed), task, seed, **changes)


def write_seed(folder: Path, task: Task, seed: int, **changes: Any) -> None:
    """Write one task and seed; rows with fewer classes than the task has a probability of 0 at the others."""
    rows = torch.Generator().manual_seed(sum(map(ord, task.name)))
    logits = 1.5 * torch.randn(task.rows, task.classes, generator=rows, dtype=torch.float64)
    mask = torch.ones(task.rows, task.classes, dtype=torch.bool)
    if task.classes > 2:
        mask[::5, -1] = False
    labels = torch.multinomial(torch.softmax(logits.masked_fill(~mask, -torch.inf), 1), 1, generator=rows)[:, 0]
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
    noisy = (logits + 0.3 * noise).masked_fill(~mask, -torch.inf)
    title = f"MAP averaged over {task.orders} option orders"
    averages = {
        "order_average": (title, "ensemble", 3.0),
        "order_average_temperature": (f"{title}, temperature", "ensemble", 0.9),
    }
    known = METHODS | (averages if task.orders else {})
    methods = {m: v for m, v in known.items() if (m, seed) not in task.missing}
    tensors = {"labels": labels, "class_mask": mask}
    for method, (_, _, factor) in methods.items():
        own = logits.masked_fill(~mask, -torch.inf) if method in averages else noisy
        tensors[f"probs.{method}"] = torch.softmax(task.sharpness * factor * own, 1)
    margin = tensors["probs.map"].topk(2).values
    tensors["score.ekfac_validation_scalar"] = (margin[:, 1] - margin[:, 0]).contiguous()
    result = {
        "task": task.name,
        "seed": seed,
        "rows": task.rows,
        "train_rows": 200,
        "calibration_rows": 150,
        "steps": 64,
        "classes": task.classes,
        "capped": {"available": {"train": 67349, "test": 872}, "max_prompt_characters": None},
        "recommended": task.recommended,
        "recommendation_reason": f"{task.recommended}: lowest calibration NLL",
        "review_score": "total_entropy" if seed else "map_entropy",
        "methods": {
            m: {"title": t, "family": f, "factor": x, "calibration_nll": 0.4, "seconds": 1.5, "bytes": 2048}
            for m, (t, f, x) in methods.items()
        },
        "rankings": _rankings(tensors, task.recommended),
        "conformal": {m: _sets(tensors[f"probs.{m}"], labels) for m in SETS if m in methods},
        "versions": {"torch": "2.13.0"},
        "hardware": {"processor": "a processor", "cores": 2},
        "configuration": CONFIGURATION,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "predictions.safetensors")
    (folder / "result.json").write_text(json.dumps(result | changes), encoding="utf-8")


def _rankings(tensors: dict[str, torch.Tensor], recommended: str) -> dict[str, float | None]:
    """Return the AUROC of two entropies and of one score that knows nothing."""
    served = tensors[f"probs.{recommended}"]
    errors = served.argmax(1) != tensors["labels"]
    entropies = {
        "map_entropy": torch.special.entr(tensors["probs.map"]).sum(1),
        "total_entropy": torch.special.entr(served).sum(1),
        "epistemic": torch.zeros(len(served), dtype=torch.float64),
    }
    return {name: error_auroc(score, errors) for name, score in entropies.items()}


def _sets(probs: torch.Tensor, labels: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return coverage and size of the classes above 0.2, and of these and the most probable one."""
    above = probs > 0.2
    with_first = above | torch.nn.functional.one_hot(probs.argmax(1), probs.shape[1]).bool()
    return {
        kind: {
            "coverage": float(found.gather(1, labels[:, None]).double().mean()),
            "size": float(found.sum(1).double().mean()),
            "nominal": 0.9,
        }
        for kind, found in (("lac", above), ("aps", with_first))
    }
