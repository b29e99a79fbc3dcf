"""A student: one adapter that learns what the five folds' adapters answer on average, and answers by one forward pass.

It is trained on rows without labels, those of the pool that are not in the first calibration draw, and on all labelled
rows. What it learns there is calibrated by the folds (``methods.averages.cross_fitted``). No label is left to calibrate
the student itself, and none does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from benchmarks.evidence.adapters import load_classifier, put, train
from benchmarks.evidence.folds import fold_rows, run_folds
from benchmarks.evidence.passes import forward_logits
from benchmarks.evidence.plan import TRAINED_DRAW, Training, Unit, units
from benchmarks.evidence.splits import Dealt, deal
from benchmarks.evidence.tasks import TASKS
from laplora.decisions.temperature import fit_temperature
from laplora.files import write_tensors
from laplora.prompts.examples import Example

#: Share of a labelled row's target that is its label, as ``python -m training distil`` has it.
LABEL_WEIGHT = 0.5


def unlabelled_rows(dealt: Dealt) -> list[Example]:
    """Return the rows whose labels nobody has: those of the pool that are not in the first calibration draw."""
    labelled = set(dealt.draws[TRAINED_DRAW])
    return [row for place, row in enumerate(dealt.pool) if place not in labelled]


def run_student(training: Training, data: Path, say: Callable[[str], None]) -> None:
    """Train a student of each style's folds, and write ``student`` of both units; what is there stays."""
    wanted = [unit for unit in units(training) if not _path(unit).is_file()]
    if not wanted:
        return
    run_folds(training, data, say)
    dealt, task = deal(training, data), TASKS[training.task]
    labelled, inputs = fold_rows(training, dealt), unlabelled_rows(dealt)
    for unit in wanted:
        folder = training.folder / "student" / unit.style
        say(f"{unit.style}: a student of {len(labelled)} labelled rows and {len(inputs)} inputs")
        targets = torch.cat([labelled_targets(unit), input_targets(unit, inputs)])
        rows = [*labelled, *inputs]
        classifier = train(task, rows, training.seed, folder, say, swag=False, targets=targets, until=unit.style)
        put(classifier, load_file(folder / f"{unit.style}.safetensors"))
        write_tensors(_path(unit), {"test": forward_logits(classifier, dealt.test)})


def labelled_targets(unit: Unit) -> torch.Tensor:
    """Return (labelled, classes) float32: labels mixed with answers of the fold's adapter that has not seen them."""
    folds = load_file(unit.folder / "folds.safetensors")
    logits, labels = folds["out_of_fold"], folds["labels"]
    answers = (logits.double() / _temperature(folds)).softmax(1)
    return F.one_hot(labels, logits.shape[1]).double().lerp(answers, 1 - LABEL_WEIGHT).float()


def input_targets(unit: Unit, inputs: Sequence[Example]) -> torch.Tensor:
    """Return (inputs, classes) float32, the mean probabilities of the folds' adapters at their one temperature."""
    folds = load_file(unit.folder / "folds.safetensors")
    classifier, at = load_classifier(TASKS[unit.training.task]), _temperature(folds)
    answers = []
    for fold in range(len(folds["members"])):
        put(classifier, load_file(unit.training.folder / "folds" / str(fold) / f"{unit.style}.safetensors"))
        answers.append((forward_logits(classifier, inputs).double() / at).softmax(1))
    return torch.stack(answers).mean(0).float()


def _temperature(folds: dict[str, torch.Tensor]) -> float:
    logits = folds["out_of_fold"].double()
    return fit_temperature(logits, folds["labels"], torch.ones_like(logits, dtype=torch.bool))


def _path(unit: Unit) -> Path:
    return unit.folder / "student.safetensors"
