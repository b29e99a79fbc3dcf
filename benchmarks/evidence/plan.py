"""What was compared, written down before any result was seen: halves, budgets, seeds, draws and styles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Rules and defaults were chosen on these tasks alone.
DEVELOPING = ("emotion", "sst2", "banking77", "boolq")
#: Conclusions were drawn from these alone.
REPORTED = ("trec", "subjects", "irony", "domains", "fields", "arc_easy", "openbookqa", "clinc150")

#: Labels that a user has; two thirds train, one third calibrates.
BUDGETS = (450, 150, 1500)
SEEDS = (0, 1, 2)
#: Draws of the calibration rows of one trained model.
DRAWS = 5
#: Most rows that calibration draws are taken from: every one of them costs a Jacobian.
LARGEST_POOL = 1000
TEST_ROWS = 500

#: One training gives both: ``early`` is the adapter after ``EARLY_EPOCHS`` of ``EPOCHS``.
Style = Literal["long", "early"]
EPOCHS, EARLY_EPOCHS = 8, 3


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
