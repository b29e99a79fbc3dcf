"""The cells of the table: a development task, and a seed that deals its rows as the evidence study does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.evidence.plan import Training
from benchmarks.evidence.splits import deal
from benchmarks.evidence.tasks import TASKS, Task
from laplora.prompts.examples import Example

#: Rules and defaults are chosen on these tasks alone (benchmarks/evidence/PLAN.md).
DEVELOPMENT = (
    *("domains", "trec", "emotion", "irony", "sst2", "fields", "subjects"),
    *("banking77", "clinc150", "arc_easy", "openbookqa"),
)
SEEDS = (0, 1, 2)
_LABELS, _LABELS_OF = 450, {"clinc150": 1500}


@dataclass(frozen=True)
class Rows:
    """The rows of a cell.

    Attributes:
        labelled: all rows whose labels a user has, the adapter's training rows first; test: those that judge.
        honest: (labelled,) bool, rows that do not train the adapter: the first draw of calibration rows.
    """

    labelled: tuple[Example, ...]
    test: tuple[Example, ...]
    honest: torch.Tensor


@dataclass(frozen=True)
class Cell:
    """A task and a seed.

    Attributes:
        runs: keeps what was made of all cells.
    """

    name: str
    seed: int
    runs: Path

    @property
    def task(self) -> Task:
        return TASKS[self.name]

    @property
    def training(self) -> Training:
        """The training whose rows these are."""
        return Training(self.name, _LABELS_OF.get(self.name, _LABELS), self.seed)

    @property
    def folder(self) -> Path:
        """The folder of everything of this seed."""
        return self.runs / self.name / str(self.training.budget) / str(self.seed)

    def rows(self, data: Path) -> Rows:
        """Return the rows, of a folder with the data sets."""
        dealt = deal(self.training, data)
        labelled = (*dealt.train, *(dealt.pool[place] for place in dealt.draw))
        return Rows(labelled, dealt.test, torch.arange(len(labelled)) >= len(dealt.train))
