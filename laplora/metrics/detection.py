"""How well a score tells rows of another distribution from rows like those an artifact was tested on.

A score is per row, higher meaning farther from the training rows: epistemic uncertainty, or minus the label mass.
The order of rows with equal scores does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.errors import DataError
from laplora.metrics.checks import checked_column
from laplora.metrics.ranking import compare_auroc

#: Two-sided 95 % of a normal.
_TWO_SIDED = 1.959964


@dataclass(frozen=True)
class Detection:
    """How well a score tells shifted rows from rows of the test split.

    Attributes:
        auroc: probability that a shifted row has a higher score than a test row, ties counting half.
        low, high: its 95 % interval (DeLong, DeLong and Clarke-Pearson 1988), cut to 0 and 1.
    """

    auroc: float
    low: float
    high: float


def detection(inside: torch.Tensor, outside: torch.Tensor) -> Detection:
    """Return how well a score tells rows apart.

    Args:
        inside: (n,) scores of in-distribution rows, at least two; outside: (m,) of shifted rows, at least two.

    Raises:
        DataError: shapes that do not fit, or fewer than two rows of a kind.
        NonFiniteError: NaN or infinity in a score.
    """
    inside, outside = checked_column(inside, "inside"), checked_column(outside, "outside")
    if min(len(inside), len(outside)) < 2:
        raise DataError(
            f"detection takes two or more rows of each kind, got {len(inside)} in-distribution and {len(outside)} "
            "shifted"
        )
    score = torch.cat([inside, outside])
    shifted = torch.arange(len(score)) >= len(inside)
    # A score that is the same for every row has an AUROC of exactly 1/2 and no variance.
    lead, error = compare_auroc(score, torch.zeros_like(score), shifted)
    return Detection(
        auroc=0.5 + lead,
        low=max(0.0, 0.5 + lead - _TWO_SIDED * error),
        high=min(1.0, 0.5 + lead + _TWO_SIDED * error),
    )
