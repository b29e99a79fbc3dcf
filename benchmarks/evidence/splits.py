"""Which rows train, which may calibrate and which test; the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.plan import DRAWS, TEST_ROWS, Training
from benchmarks.evidence.rows import Row
from benchmarks.evidence.tasks import TASKS, Task
from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.templates import render


@dataclass(frozen=True)
class Dealt:
    """The rows of one training.

    Attributes:
        train: rows of the adapter; pool: rows that calibration rows are drawn from; test: fixed for a task.
        draw: the places in the pool of the calibration rows, ascending.
    """

    train: tuple[Example, ...]
    pool: tuple[Example, ...]
    test: tuple[Example, ...]
    draw: tuple[int, ...]


def deal(training: Training, data: Path) -> Dealt:
    """Return the rows of a training: duplicates left out, test rows fixed, the others dealt by the seed.

    Training rows of a smaller budget are among those of a larger one, and so are its pool's.

    Raises:
        DataError: the task has too few rows for the budget.
    """
    task = TASKS[training.task]
    examples = distinct(task, task.read(data))
    random.Random(f"{task.name} test").shuffle(examples)
    test, rest = examples[:TEST_ROWS], examples[TEST_ROWS:]
    random.Random(f"{task.name} seed {training.seed}").shuffle(rest)
    wanted = training.train_rows + training.pool_rows
    if len(rest) < wanted:
        raise DataError(
            f"{task.name} has {len(rest)} rows beside its test rows, a budget of {training.budget} needs {wanted}"
        )
    # From both ends, so that a larger budget keeps the rows of a smaller one on each side.
    train, pool = rest[: training.train_rows], rest[::-1][: training.pool_rows]
    return Dealt(tuple(train), tuple(pool), tuple(test), _draw(training))


def _draw(training: Training) -> tuple[int, ...]:
    """Return the calibration rows as places in the pool: its first ones, or a random subset of a smaller pool."""
    size, pool = training.calibration_rows, training.pool_rows
    if DRAWS * size <= pool:
        return tuple(range(size))
    draw = random.Random(f"{training.task} {training.budget} {training.seed} draws")
    return tuple(sorted(draw.sample(range(pool), size)))


def distinct(task: Task, rows: Sequence[Row]) -> list[Example]:
    """Return rows as examples, the first of each prompt; in the order of the data."""
    seen: set[str] = set()
    kept = []
    for number, (fields, label) in enumerate(rows):
        prompt = " ".join(render(task.template, fields, task.labels)[0].casefold().split())
        if prompt not in seen:
            seen.add(prompt)
            kept.append(Example(f"{task.name}-{number}", fields, label, len(task.labels)))
    return kept
