"""Costs of answers by their probabilities: the answer whose expected cost is least, and what decisions cost."""

from __future__ import annotations

import math
from typing import Any

import torch

from laplora.linearised import targets_of
from laplora.metrics.groups import mean_and_error

#: Costs that differ by less than this share are equal: then the more probable label answers.
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
    ties = expected <= expected.amin(1, keepdim=True) * (1 + _ROUNDING)
    best = probs.double().cpu().masked_fill(~ties, -1).argmax(1)
    return best, expected.gather(1, best[:, None])[:, 0]


def cost_figures(
    costs: torch.Tensor,
    review: float,
    answered: torch.Tensor,
    right: torch.Tensor,
    accepted: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Return the mean cost of a row, its 95 % interval, and what it is if every row is reviewed or none is.

    The interval is the normal one. Its high end counts one mistake more, of the dearest that an accepted answer can be,
    or of groups a mean group of such mistakes: with few mistakes that is nearly a one-sided bound of 95 %.

    Args:
        costs: (labels, labels), of ``Costs.matrix``; review: of a person's look.
        answered: (rows,) int64, places of labels; accepted: (rows,) bool.
        right: (rows,) int64, places of labels; or soft, (rows, labels), whose costs are then expected ones.
        groups: (rows,) int64, rows of one number err together; None: each row is on its own.
    """
    each = (targets_of(right, len(costs)) @ costs).gather(1, answered[:, None])[:, 0]
    paid = each.where(accepted, torch.tensor(review, dtype=torch.float64))
    mean, error = mean_and_error(paid, groups)
    high = review
    if bool(accepted.any()):
        dearest = costs[:, answered[accepted]].max()
        rows = 1 if groups is None else math.ceil(len(groups) / len(set(groups.tolist())))
        one_more = torch.cat([paid, dearest.expand(rows)])
        numbers = None if groups is None else torch.cat([groups, (groups.max() + 1).expand(rows)])
        further, spread = mean_and_error(one_more, numbers)
        high = min(further + _NORMAL * spread, max(review, float(dearest)))
    low = max(0.0, mean - _NORMAL * error) if math.isfinite(error) else 0.0
    return {
        "mean": mean,
        "interval": [low, high],
        "all_reviewed": review,
        "none_reviewed": float(each.mean()),
    }
