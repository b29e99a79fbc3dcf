"""The trainings and their numbers of rows, written down before any result was seen (PLAN.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Base = Literal["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"]
SMALL: Base = "smollm2-135m-instruct"
LARGER: Base = "qwen2.5-coder-0.5b-instruct"
#: Nothing is trained on it.
LARGEST: Base = "qwen2.5-coder-1.5b-instruct"
BASES: tuple[Base, ...] = get_args(Base)

#: Tasks that choose no rule and no default: results are reported on them.
REPORTED = ("snips", "ag_news", "subj", "customer_reviews", "hate", "offensive", "sentiment", "arc_challenge")
#: Those with other numbers of labels too; with the larger bases; and with several adapters.
BUDGETED, ON_LARGER = ("snips", "ag_news", "sentiment"), ("snips", "hate", "arc_challenge")
ON_LARGEST = SEVERAL = ("snips", "hate")
#: Ends of the names of tasks whose test rows have half or twice the odds of the first label.
HALVED, DOUBLED = "_halved", "_doubled"
#: Tasks whose test rows are of their data set's own test part.
SHIFTED = tuple(f"{name}_official" for name in ("trec", "hate", "offensive", "sentiment", "boolq"))
LABELS, OTHER_LABELS = 450, (50, 150, 1500)
BUDGETS = tuple(sorted((LABELS, *OTHER_LABELS)))
#: Tasks that nothing is reported on, if they have another number.
_LABELS_OF = {"clinc150": 1500}
SEEDS = (0, 1, 2)
#: Draws of the calibration rows of one trained model.
DRAWS = 5
#: Most rows that calibration draws are taken from.
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
    base: Base = SMALL

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


def unreported(task: str, seed: int) -> Training:
    """Return the training of a task that the plan does not report on."""
    return Training(task, _LABELS_OF.get(task, LABELS), seed)


def planned(seed: int) -> list[Training]:
    """Return the trainings of a seed, those of the main table first."""
    main = [Training(task, LABELS, seed) for task in REPORTED]
    larger = [Training(task, LABELS, seed, LARGER) for task in ON_LARGER]
    larger += [Training(task, LABELS, seed, LARGEST) for task in ON_LARGEST]
    others = [Training(task, labels, seed) for labels in OTHER_LABELS for task in BUDGETED]
    return [*main, *others, *larger, *(Training(task, LABELS, seed) for task in SHIFTED)]
