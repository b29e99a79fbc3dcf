"""Costs of wrong answers beside a person's look, and the answer whose expected cost is least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from laplora.errors import ConfigError
from laplora.metrics.groups import mean_and_error

#: Stands for every label that is not named.
OTHERS = "*"
#: Costs nearer to each other than this share of the largest one are equal: then the more probable label answers.
_ROUNDING = 1e-12
_NORMAL = 1.96
Value = TypeVar("Value")
Cost = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Risk = Annotated[float, Field(gt=0, lt=1)]


class Costs(BaseModel):
    """Costs in any one unit, such as euros or minutes. A right answer costs nothing.

    Answers are those of Bayes' rule with a reject option (Chow 1970): the label of least expected cost answers, and it
    is accepted if it is expected to cost at most what a person's look costs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    review: Cost = Field(description="Of a person's look, who then knows the right label, in any unit.", examples=[2.0])
    wrong: Cost | dict[str, Cost | dict[str, Cost]] = Field(
        description="Of an accepted answer that is wrong, in the same unit: a number; or by right label a number, or "
        "by right label and answered label. * stands for all labels that are not named.",
        examples=[{"fraud": 50.0, "*": 5.0}],
    )

    def matrix(self, labels: Sequence[str]) -> torch.Tensor:
        """Return (classes, classes) float64, the cost at each right label (row) of each answered one (column).

        Raises:
            ConfigError: a name that is none of the labels, or a label without a cost.
        """
        of_right: list[Any] = by_label(self.wrong, labels, "costs.wrong")
        rows: list[list[float]] = [
            by_label({label: 0.0, **of} if isinstance(of, Mapping) else of, labels, f"costs.wrong of {label!r}")
            for label, of in zip(labels, of_right, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float64).fill_diagonal_(0)


#: The aim of decisions: a target risk, one by answered label, or what mistakes cost.
Wanted = float | Mapping[str, float] | Costs


def by_label(values: Value | Mapping[str, Value], labels: Sequence[str], what: str) -> list[Value]:
    """Return what each label has, in order: one value for all, or by name, with ``OTHERS`` for those not named.

    Args:
        what: says in errors what it is.

    Raises:
        ConfigError: a name that is none of the labels, or a label without a value.
    """
    if not isinstance(values, Mapping):
        return [values] * len(labels)
    if unknown := sorted(values.keys() - {*labels, OTHERS}):
        raise ConfigError(f"{what} names {unknown[0][:64]!r}, which is none of the labels {list(labels)[:8]}")
    if missing := [label for label in labels if not values.keys() & {label, OTHERS}]:
        raise ConfigError(f"{what} says nothing of the label {missing[0]!r}: name it, or give {OTHERS!r} for the rest")
    return [values[label if label in values else OTHERS] for label in labels]


def cheapest(
    probs: torch.Tensor, costs: torch.Tensor, class_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows,) int64 the label of least expected cost, and (rows,) float64 what it is expected to cost.

    Args:
        probs: (rows, labels); costs: (labels, labels), of ``Costs.matrix``; class_mask: (rows, labels) bool, the labels
            that a row can have; None: all.
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
