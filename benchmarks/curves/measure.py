"""One training of TREC on so many labels, measured: two thirds of them train, one third calibrates.

Rows, prompt and label words are those of the evidence study, which also has the same test rows. A seed deals the other
rows in one order, from both ends of which its trainings and calibrations take theirs: more labels are the fewer ones
and others. So are base, adapter and posterior those of ``python -m benchmarks.reproduce`` for SmolLM2-135M.
"""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import TEST_ROWS
from benchmarks.evidence.splits import distinct
from benchmarks.evidence.tasks import TASKS
from benchmarks.reproduce.checkpoint import answer_checkpoint
from benchmarks.reproduce.record import scores, write_record
from laplora.errors import DataError
from laplora.files import write_whole
from laplora.prompts.examples import Example
from training.config import RunConfig
from training.finetune import train_adapter
from training.workspace.results import load_trained
from training.workspace.runtime import open_run

TASK = "trec"
SEEDS = (0, 1, 2)
LABELS = (50, 150, 450, 1000, 2000)
#: Passes over the training rows.
EPOCHS = 6

Record = dict[str, Any]


def measure(data: Path, labels: int, seed: int, folder: Path) -> None:
    """Train on so many labels and keep what every predictive scores on the test rows; what is there stays.

    Raises:
        DataError: the task has too few rows.
    """
    place = folder / f"{TASK}-{labels}-{seed}"
    files = write_rows(data, labels, seed, folder / "rows" / place.name)
    run = open_run(configuration(labels, seed, files, folder))
    steps = run.config.optimizer.step_count
    train_adapter(run, keep=(steps,))
    answers = answer_checkpoint(run, lambda: load_trained(run), steps, ())
    rows = {part: len(getattr(run.splits, part)) for part in ("train", "calibration", "test")}
    record = {"task": TASK, "labels": labels, "seed": seed, "steps": steps, "rows": rows, "methods": scores(answers)}
    write_record(place, record)
    gc.collect()  # a model's modules refer to each other; the next one needs the memory


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
    files = {}
    for name, rows in splits.items():
        files[name] = str(folder / f"{name}.jsonl")
        write_whole(Path(files[name]), "".join(_line(example) for example in rows))
    return files


def _line(example: Example) -> str:
    row = {**example.fields, "label": TASKS[TASK].labels[int(example.label)]}
    return json.dumps(row, ensure_ascii=False) + "\n"


def configuration(labels: int, seed: int, files: dict[str, str], folder: Path) -> RunConfig:
    """Return the configuration of one training on rows in files."""
    task = TASKS[TASK]
    fields: dict[str, Any] = {
        "name": f"{TASK}-{labels}-{seed}",
        "seed": seed,
        "base": {"model": task.base, "quantization": "nf4"},
        "data": {
            "dataset": "file",
            "path": files,
            "template": {"name": task.template.name, "text": task.template.text},
            "labels": task.labels,
        },
        "max_tokens": task.max_tokens,
        "adapter": {"targets": ["q_proj", "v_proj", "lm_head"]},
        "optimizer": {"learning_rate": 3e-4, "epochs": EPOCHS},
        "laplace": {"structure": "ekfac", "rank": 10, "factor_dtype": "bfloat16"},
        "predictives": {"fast": 0},
        "runs": folder,
        "artifacts": folder / "artifacts",
    }
    return RunConfig.model_validate(fields)


def measured(folder: Path) -> Sequence[Record]:
    """Return the records of all trainings in a folder of results that have one."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{TASK}-*/reproduction.json"))]
