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
        draws: of each draw the places in the pool of its calibration rows, ascending.
    """

    train: tuple[Example, ...]
    pool: tuple[Example, ...]
    test: tuple[Example, ...]
    draws: tuple[tuple[int, ...], ...]


def deal(training: Training, data: Path) -> Dealt:
    """Return the rows of a training: duplicates left out, test rows fixed, the others dealt by the seed.

    Training rows of a smaller budget are among those of a larger one, and so are its pool's.

    Raises:
        DataError: the task has too few rows for the budget.
    """
    task = TASKS[training.task]
    of_test = task.test(data) if task.test else []
    examples = distinct(task, [*of_test, *task.read(data)])  # a prompt of both parts tests
    first = sum(int(example.id.rpartition("-")[2]) < len(of_test) for example in examples)
    if task.test is None:
        random.Random(f"{task.name} test").shuffle(examples)
        test, rest = examples[:TEST_ROWS], examples[TEST_ROWS:]
    else:
        test, rest = examples[:first], examples[first:]
        random.Random(f"{task.name} test").shuffle(test)
        test = test[:TEST_ROWS]
    random.Random(f"{task.name} seed {training.seed}").shuffle(rest)
    wanted = training.train_rows + training.pool_rows
    if len(rest) < wanted:
        raise DataError(
            f"{task.name} has {len(rest)} rows beside its test rows, a budget of {training.budget} needs {wanted}"
        )
    # From both ends, so that a larger budget keeps the rows of a smaller one on each side.
    train, pool = rest[: training.train_rows], rest[::-1][: training.pool_rows]
    return Dealt(tuple(train), tuple(pool), tuple(test), _draws(training))


def _draws(training: Training) -> tuple[tuple[int, ...], ...]:
    """Return the draws as places in the pool: one after the other, or random subsets of a pool that is too small."""
    size, pool = training.calibration_rows, training.pool_rows
    if DRAWS * size <= pool:
        return tuple(tuple(range(size * draw, size * (draw + 1))) for draw in range(DRAWS))
    random_draw = random.Random(f"{training.task} {training.budget} {training.seed} draws")
    return tuple(tuple(sorted(random_draw.sample(range(pool), size))) for _ in range(DRAWS))


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
