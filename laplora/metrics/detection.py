"""How well a score tells rows of another distribution from rows like those an artifact was tested on.

A score is per row, higher meaning farther from the training rows: epistemic uncertainty, or minus the label mass.
The order of rows with equal scores does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.errors import DataError
from laplora.metrics.checks import checked_column
from laplora.metrics.ranking import compare_auroc, tie_groups

#: Share of the in-distribution rows that the threshold of ``fpr_at_95_tpr`` lets pass.
_KEPT = 0.95
#: Two-sided 95 % of a normal.
_TWO_SIDED = 1.959964


@dataclass(frozen=True)
class Detection:
    """How well a score tells shifted rows from rows of the test split.

    Attributes:
        auroc: probability that a shifted row has a higher score than a test row, ties counting half.
        low, high: its 95 % interval (DeLong, DeLong and Clarke-Pearson 1988), cut to 0 and 1.
        fpr_at_95_tpr: share of the shifted rows that still pass at the lowest threshold that at least 95 % of the test
            rows pass (Liang, Li and Srikant, arXiv 1706.02690, whose positive class is in-distribution).
        inside, outside: rows of the test split, and shifted rows.
    """

    auroc: float
    low: float
    high: float
    fpr_at_95_tpr: float
    inside: int
    outside: int


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
    _, group, _ = tie_groups(score)
    passing = torch.bincount(group[~shifted], minlength=int(group.max()) + 1).cumsum(0)
    # 19 of 20 is not below 0.95 only because of rounding.
    last = int((passing >= _KEPT * len(inside) - 1e-9).nonzero()[0])
    return Detection(
        auroc=0.5 + lead,
        low=max(0.0, 0.5 + lead - _TWO_SIDED * error),
        high=min(1.0, 0.5 + lead + _TWO_SIDED * error),
        fpr_at_95_tpr=float((group[shifted] <= last).double().mean()),
        inside=len(inside),
        outside=len(outside),
    )
