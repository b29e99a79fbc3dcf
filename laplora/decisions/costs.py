"""Costs of answers by their probabilities: the answer whose expected cost is least, and what decisions cost."""

from __future__ import annotations

import math
from typing import Any

import torch

from laplora.metrics.groups import mean_and_error

#: Costs nearer to each other than this share of the largest one are equal: then the more probable label answers.
_ROUNDING = 1e-12
_NORMAL = 1.96


def cheapest(
    probs: torch.Tensor, costs: torch.Tensor, class_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows,) int64 the label of least expected cost, and (rows,) float64 what it is expected to cost.

    Args:
        probs: (rows, labels); costs: (labels, labels), of ``laplora.decisions.wanted.Costs.matrix``.
        class_mask: (rows, labels) bool, the labels that a row can have; None: all.
    """
    expected = probs.double().cpu() @ costs
    if class_mask is not None:
        expected = expected.masked_fill(~class_mask.cpu(), math.inf)
    least = expected.amin(1)
    ties = expected <= least[:, None] + _ROUNDING * costs.max()
    return probs.double().cpu().masked_fill(~ties, -1).argmax(1), least


def cost_figures(
    costs: torch.Tensor,
    review: float,
    answered: torch.Tensor,
    right: torch.Tensor,
    accepted: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Return the mean cost of a row, its 95 % interval, and what it is if every row is reviewed or none is.

    The interval is the normal one; its high end counts one mistake more, of the dearest that an accepted answer can be.

    Args:
        costs: (labels, labels), of ``Costs.matrix``; review: of a person's look.
        answered, right: (rows,) int64, places of labels; accepted: (rows,) bool.
        groups: (rows,) int64, rows of one number err together; None: each row is on its own.
    """
    paid = costs[right, answered].where(accepted, torch.tensor(review, dtype=torch.float64))
    mean, error = mean_and_error(paid, groups)
    high = review
    if bool(accepted.any()):
        one_more = torch.cat([paid, costs[:, answered[accepted]].max()[None]])
        numbers = None if groups is None else torch.cat([groups, groups.max()[None] + 1])
        further, spread = mean_and_error(one_more, numbers)
        high = further + _NORMAL * spread
    low = max(0.0, mean - _NORMAL * error) if math.isfinite(error) else 0.0
    return {
        "mean": mean,
        "interval": [low, high],
        "all_reviewed": review,
        "none_reviewed": float(costs[right, answered].mean()),
    }
