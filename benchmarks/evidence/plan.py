"""Which rows one training has, written down before any result was seen."""

from __future__ import annotations

from dataclasses import dataclass

#: Draws of the calibration rows of one trained model.
DRAWS = 5
#: Most rows that calibration draws are taken from: every one of them costs a Jacobian.
LARGEST_POOL = 1000
TEST_ROWS = 500

#: The learning rate falls as if ``EPOCHS`` were run; training stops after ``EARLY_EPOCHS``.
EPOCHS, EARLY_EPOCHS = 8, 3


@dataclass(frozen=True, order=True)
class Training:
    """One fine-tuning, and its rows; ``budget``: labels that a user has, two thirds train, one third calibrates."""

    task: str
    budget: int
    seed: int

    @property
    def train_rows(self) -> int:
        return self.budget - self.calibration_rows

    @property
    def calibration_rows(self) -> int:
        """Rows of each draw that calibrates."""
        return self.budget // 3

    @property
    def pool_rows(self) -> int:
        """Rows that the draws are taken from: disjoint draws up to ``LARGEST_POOL``."""
        return min(DRAWS * self.calibration_rows, LARGEST_POOL)
