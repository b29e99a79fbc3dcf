"""Calibration against the number of labels.

Of the labels two thirds train, one third calibrates. Rows, prompt and label words are those of the evidence study,
which also has the same test rows. A seed deals the other rows in one order, from both ends of which its trainings and
calibrations take theirs: more labels are the fewer ones and others.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import TEST_ROWS
from benchmarks.evidence.splits import distinct
from benchmarks.evidence.tasks import TASKS
from benchmarks.reproduce.checkpoint import answer_checkpoint
from benchmarks.reproduce.record import scores
from benchmarks.sweeps.driver import Jobs, Point, Record, Sweep
from laplora.errors import DataError
from laplora.files import write_whole
from training.config import RunConfig
from training.finetune import train_adapter
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

TASK = "trec"
LABELS = (50, 150, 450, 1000, 2000)
#: Passes over the training rows.
EPOCHS = 6
METHODS = {
    "map": "MAP",
    "temperature": "temperature scaling",
    "conditioned": "temperature, conditioned",
    "laplace": "Laplace",
}


def jobs(options: argparse.Namespace) -> Jobs:
    """Yield one training for each seed and number of labels."""
    if options.data is None:
        raise DataError("--data FOLDER is needed but with --publish")
    for seed in options.seeds:
        for labels in options.at or LABELS:
            yield f"{labels}-{seed}", partial(measure, options.data, labels, seed, CURVES.runs)


def measure(data: Path, labels: int, seed: int, folder: Path) -> list[Record]:
    """Train on so many labels and return what every predictive scores on the test rows; DataError: too few rows."""
    files = write_rows(data, labels, seed, folder / "rows" / f"{labels}-{seed}")
    run = open_run(configuration(labels, seed, files, folder))
    steps = run.config.optimizer.step_count
    train_adapter(run, keep=(steps,))
    answers = answer_checkpoint(run, lambda: load_trained(run), steps, ())
    gc.collect()  # a model's modules refer to each other; the next one needs the memory
    return [{"task": TASK, "labels": labels, "seed": seed, "methods": scores(answers)}]


def write_rows(data: Path, labels: int, seed: int, folder: Path) -> dict[str, str]:
    """Write the rows that train, calibrate and test as JSON Lines, and return the files by split."""
    task = TASKS[TASK]
    examples = distinct(task, task.read(data))
    random.Random(f"{task.name} test").shuffle(examples)
    test, rest = examples[:TEST_ROWS], examples[TEST_ROWS:]
    if labels > len(rest):
        raise DataError(f"{task.name} has {len(rest)} rows beside its test rows, not {labels}")
    random.Random(f"{task.name} seed {seed}").shuffle(rest)
    calibration = labels // 3
    splits = {"train": rest[: labels - calibration], "calibration": rest[::-1][:calibration], "test": test}
    for name, rows in splits.items():
        lines = [json.dumps({**row.fields, "label": task.labels[int(row.label)]}, ensure_ascii=False) for row in rows]
        write_whole(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
    return {name: str(folder / f"{name}.jsonl") for name in splits}


def configuration(labels: int, seed: int, files: dict[str, str], folder: Path) -> RunConfig:
    """Return the configuration of one training on rows in files."""
    task = TASKS[TASK]
    template = {"name": task.template.name, "text": task.template.text}
    fields: dict[str, Any] = {
        "name": f"{TASK}-{labels}-{seed}",
        "seed": seed,
        "base": {"model": task.base, "quantization": "nf4"},
        "data": {"dataset": "file", "path": files, "template": template, "labels": task.labels},
        "max_tokens": task.max_tokens,
        "experts": {"encoder": None},
        "adapter": {"targets": ["q_proj", "v_proj", "lm_head"]},
        "optimizer": {"learning_rate": 3e-4, "epochs": EPOCHS},
        "laplace": {"structure": "ekfac", "rank": 10, "factor_dtype": "bfloat16"},
        "runs": folder,
        "artifacts": folder / "artifacts",
    }
    return RunConfig.model_validate(fields)


def points(records: Sequence[Record]) -> Iterable[Point]:
    """Yield what every method scored."""
    for record in records:
        for method, name in METHODS.items():
            yield Point("TREC", record["labels"], name, record["methods"][method])


CURVES = Sweep(
    name="curves",
    text=(
        "Calibration against labels",
        "SmolLM2-135M in 4 bit, the posterior's structure `ekfac`, learning rate 3e-4, batches of 6; three trainings "
        "for each figure. Two thirds of the labels train, for 6 epochs, one third calibrates, and 500 rows test; rows, "
        "prompt and labels are those of [the evidence study](../evidence/RESULTS.md). ± is the standard deviation "
        "between trainings; test rows are the same for all, and it does not hold their noise, which is much of an ECE.",
    ),
    axis="labels",
    metrics={"nll": "NLL, nats", "accuracy": "accuracy", "ece": "ECE"},
    jobs=jobs,
    key=lambda record: (record["labels"], record["seed"]),
    points=points,
)
