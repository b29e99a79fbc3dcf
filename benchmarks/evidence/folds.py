"""All labels for training: what cross-fitting gives where no label is set aside for calibration.

The labels of a training and of its first calibration draw are put together. Five adapters are trained on four fifths
each. They give every row a logit that its label did not train, which fits a temperature: their own, and that of the
adapter which was trained on all (``retrained``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import Weights, put, train
from benchmarks.evidence.passes import forward_logits
from benchmarks.evidence.plan import STYLES, Training, Unit
from benchmarks.evidence.retrained import all_rows, run_retrained
from benchmarks.evidence.splits import Dealt, deal
from benchmarks.evidence.tasks import TASKS
from laplora.files import write_tensors
from laplora.prompts.examples import Example

FOLDS = 5


def fold_rows(training: Training, dealt: Dealt) -> list[Example]:
    """Return all labelled rows in the order that they are dealt to the folds."""
    rows = all_rows(training, dealt)
    random.Random(f"{training.task} folds {training.seed}").shuffle(rows)
    return rows


def run_folds(training: Training, data: Path, say: Callable[[str], None]) -> None:
    """Train the adapters of the folds and write ``folds`` of both units; what is there stays."""
    wanted = [Unit(training, style) for style in STYLES]
    if all((unit.folder / "folds.safetensors").is_file() for unit in wanted):
        return
    run_retrained(training, data, say)
    dealt, task = deal(training, data), TASKS[training.task]
    rows = fold_rows(training, dealt)
    logits: dict[str, Weights] = {
        style: {
            "out_of_fold": torch.zeros(len(rows), len(task.labels)),
            "members": torch.zeros(FOLDS, len(dealt.test), len(task.labels)),
        }
        for style in STYLES
    }
    for fold in range(FOLDS):
        held = list(range(fold, len(rows), FOLDS))
        folder = training.folder / "folds" / str(fold)
        say(f"fold {fold}: training on {len(rows) - len(held)} rows")
        used = [row for number, row in enumerate(rows) if number not in set(held)]
        classifier = train(task, used, training.seed, folder, say, swag=False)
        for style in STYLES:
            put(classifier, load_file(folder / f"{style}.safetensors"))
            logits[style]["out_of_fold"][held] = forward_logits(classifier, [rows[i] for i in held])
            logits[style]["members"][fold] = forward_logits(classifier, dealt.test)
    for unit in wanted:
        labels = torch.tensor([row.label for row in rows])
        write_tensors(unit.folder / "folds.safetensors", logits[unit.style] | {"labels": labels})
