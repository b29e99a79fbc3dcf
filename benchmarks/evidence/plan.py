"""What is compared, written down before any result was seen: halves, budgets, seeds, draws and styles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: Rules and defaults are chosen on these tasks alone.
DEVELOPING = ("emotion", "sst2", "banking77", "boolq")
#: Conclusions are drawn from these alone.
REPORTED = ("trec", "subjects", "irony", "domains", "fields", "arc_easy", "openbookqa", "clinc150")

#: Labels that a user has; two thirds train, one third calibrates.
BUDGETS = (450, 150, 1500)
SEEDS = (0, 1, 2)
#: Added at 450 labels, on all small tasks of the reporting half alike, after ``SEEDS`` had been seen: the intervals of
#: three were too wide. The second look has wider intervals (``decision``).
ADDED_SEEDS = (3, 4)
#: Draws of the calibration rows of one trained model.
DRAWS = 5
#: Of these, the one whose labels train the adapters that are trained on all labels.
TRAINED_DRAW = 0
#: Most rows that calibration draws are taken from: every one of them costs a Jacobian.
LARGEST_POOL = 1000
TEST_ROWS = 500

#: One training gives both: ``early`` is the adapter after ``EARLY_EPOCHS`` of ``EPOCHS``.
Style = Literal["long", "early"]
STYLES: tuple[Style, ...] = ("long", "early")
EPOCHS, EARLY_EPOCHS = 8, 3

#: Blocks whose Jacobians a kernel is of; each holds the one before it.
Subset = Literal["values_b", "all_b", "all"]
SUBSETS: tuple[Subset, ...] = ("values_b", "all_b", "all")

RUNS = Path("runs") / "evidence"


@dataclass(frozen=True, order=True)
class Training:
    """One fine-tuning, and its rows."""

    task: str
    budget: int
    seed: int

    @property
    def train_rows(self) -> int:
        """Rows that train."""
        return self.budget - self.calibration_rows

    @property
    def calibration_rows(self) -> int:
        """Rows of each draw that calibrates."""
        return self.budget // 3

    @property
    def pool_rows(self) -> int:
        """Rows that the draws are taken from: disjoint draws up to ``LARGEST_POOL``."""
        return min(DRAWS * self.calibration_rows, LARGEST_POOL)

    @property
    def folder(self) -> Path:
        """Where everything of it is kept."""
        return RUNS / self.task / str(self.budget) / str(self.seed)


@dataclass(frozen=True, order=True)
class Unit:
    """One trained model: what a method answers for."""

    training: Training
    style: Style

    @property
    def folder(self) -> Path:
        """Where its arrays are kept."""
        return self.training.folder / self.style

    def __str__(self) -> str:
        """Return task/budget/seed/style."""
        one = self.training
        return f"{one.task}/{one.budget}/{one.seed}/{self.style}"


def units(training: Training) -> tuple[Unit, ...]:
    """Return the units that share a training."""
    return tuple(Unit(training, style) for style in STYLES)


def trainings(tasks: Sequence[str], budgets: Sequence[int], seeds: Sequence[int]) -> Iterator[Training]:
    """Yield trainings in the order of a run: all tasks at the first seed before the next, budget by budget."""
    for budget in budgets:
        for seed in seeds:
            for task in tasks:
                yield Training(task, budget, seed)
