"""A study as ``python -m benchmarks.study`` leaves it, from known distributions: what to publish without a model.

Labels are drawn from the softmax of known logits, so a method that multiplies them by 1 is calibrated and one that
multiplies them by more is overconfident; every seed adds noise to the logits of the same rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.study.pages.tables import TABLES as PAGE_TABLES

#: Method -> (title, family, factor on the logits).
METHODS = {
    "map": ("MAP", "map", 3.0),
    "temperature": ("temperature scaling", "temperature", 0.9),
    "laplace": ("Laplace", "laplace", 0.95),
    "laplace_evidence": ("Laplace, evidence", "laplace", 0.2),
    "ensemble": ("checkpoint ensemble", "ensemble", 1.8),
    "order_average": ("MAP averaged over 4 option orders", "ensemble", 3.0),
}
BASE = {"model": "/models/tiny", "quantization": "nf4"}
CONFIGURATION = {"base": BASE, "optimizer": {"learning_rate": 5e-4}}
SETS = {kind: {"coverage": 0.91, "size": 1.3, "nominal": 0.9} for kind in ("lac", "aps")}


@dataclass(frozen=True)
class Task:
    """One synthetic task; ``sharpness`` times the methods' factors, so that 1/3 has a calibrated MAP."""

    name: str
    rows: int = 90
    classes: int = 2
    sharpness: float = 1.0
    missing: tuple[tuple[str, int], ...] = ()
    recommended: str = "laplace"


TASKS = (
    Task("alpha", rows=150),
    Task("beta", classes=4, missing=(("ensemble", 1), ("laplace_evidence", 0), ("laplace_evidence", 1))),
    Task("gamma", sharpness=1 / 3, recommended="map"),
)


def write_study(study: Path, tasks: tuple[Task, ...] = TASKS, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> None:
    """Write every task and seed below a folder; ``changes`` replace fields of every result.json."""
    for task in tasks:
        for seed in seeds:
            write_seed(study / task.name / str(seed), task, seed, **changes)


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
    methods = {m: v for m, v in METHODS.items() if (m, seed) not in task.missing}
    tensors = {"labels": labels, "class_mask": mask}
    for method, (_, _, factor) in methods.items():
        tensors[f"probs.{method}"] = torch.softmax(task.sharpness * factor * noisy, 1)
    margin = tensors["probs.map"].topk(2).values
    tensors["score.laplace"] = (margin[:, 1] - margin[:, 0]).contiguous()
    result = {
        "task": task.name,
        "seed": seed,
        "rows": task.rows,
        "train_rows": 200,
        "calibration_rows": 150,
        "steps": 64,
        "classes": list("ABCD")[: task.classes],
        "capped": {"available": {"train": 67349, "test": 872}, "max_prompt_characters": None},
        "recommended": task.recommended,
        "recommendation_reason": f"{task.recommended}: lowest calibration NLL",
        "review_score": "total_entropy",
        "methods": {
            m: {"title": title, "family": family, "seconds": 1.5, "bytes": 2048}
            for m, (title, family, _) in methods.items()
        },
        "rankings": {"map_entropy": 0.7, "total_entropy": 0.72},
        "conformal": {m: SETS for m in ("map", "temperature", "laplace")},
        "versions": {"torch": "2.13.0"},
        "hardware": {"processor": "a processor", "cores": 2},
        "configuration": CONFIGURATION,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "predictions.safetensors")
    (folder / "result.json").write_text(json.dumps(result | changes), encoding="utf-8")


def empty_docs(folder: Path) -> Path:
    """Return a documentation folder whose page has every pair of markers and other text around them."""
    docs = folder / "docs"
    docs.mkdir(parents=True)
    parts = [f"<!-- study:begin {name} -->\n<!-- study:end {name} -->\n" for name in PAGE_TABLES]
    (docs / "results.md").write_text("# Results\n\nbefore\n\n" + "\n".join(parts) + "\nafter\n", encoding="utf-8")
    return docs


def page_of(docs: Path) -> str:
    """Return the page."""
    return (docs / "results.md").read_text(encoding="utf-8")


def cells(table: str) -> list[list[str]]:
    """Return a Markdown table's lines as cells, the heading first, without the rule below it."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return [line for line in lines if not line[0].startswith("---")]
