"""A cell of the study: one training with its rows, and the folder of what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence.plan import Training
from benchmarks.evidence.splits import Dealt, deal
from benchmarks.evidence.tasks import TASKS, Task


@dataclass(frozen=True)
class Cell:
    """A training; ``runs``: the folder of what was made of all cells."""

    training: Training
    runs: Path

    @property
    def task(self) -> Task:
        return TASKS[self.training.task]

    @property
    def folder(self) -> Path:
        """The folder of everything of this training."""
        return self.task_folder / str(self.training.budget) / str(self.training.seed)

    @property
    def task_folder(self) -> Path:
        """The folder of what no training changes."""
        return self.runs / self.training.base / self.training.task

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"

    def answers(self, draw: int, method: str) -> Path:
        """Return the file of a method's answers with a draw of calibration rows."""
        return self.folder / "answers" / str(draw) / f"{method}.safetensors"

    def rows(self, data: Path) -> Dealt:
        """Return the rows, of a folder with the data sets."""
        return deal(self.training, data)

    def __str__(self) -> str:
        """Return its name in logs."""
        of = self.training
        return f"{of.task} {of.base.partition('-')[0]} {of.budget} {of.seed}"
