"""Which answer is served: the least loss out of fold, and of those within its noise the cheapest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from laplora.errors import DataError
from laplora.metrics.checks import check_columns
from laplora.metrics.groups import mean_and_error

#: Times the least cost, up to which a cost is no reason to answer worse.
_AS_CHEAP = 1.1
#: Passes of the base that a head's features take; a sentence encoder is small, and options are run one by one.
_PASSES = {"frozen": 1.0, "options": 2.0, "encoder": 0.05, "corrected": 1.0, "rescaled": 0.0}
#: Passes of the base that an answer by Laplace takes, Jacobians and all.
_LAPLACE = 3.0


@dataclass(frozen=True)
class Choice:
    """The predictive that is served.

    Attributes:
        name: of the answer.
        reason: a sentence with figures.
        nll: by name, mean over rows, nats.
        cross_fitted: NLL of the choice itself: each fold's rows by the answer that the other folds' rows choose. The
            chosen one's own is the best of several, so it flatters.
    """

    name: str
    reason: str
    nll: Mapping[str, float]
    cross_fitted: float


def costs_of(names: Iterable[str], weights: Mapping[str, float], *, adapter: bool) -> dict[str, float]:
    """Return what answers cost, in passes of the base.

    Args:
        names: of the answers; weights: of the pool's experts, by name.
        adapter: whether there is one: its pass is then part of every answer.
    """

    def cost(name: str) -> float:
        if name == "pooled":
            return sum(_PASSES.get(one, 0.0) for one in weights)
        return _LAPLACE - 1 if name == "laplace" else _PASSES.get(name, 0.0)

    return {name: adapter + cost(name) for name in names}


def choose(
    losses: Mapping[str, torch.Tensor],
    costs: Mapping[str, float],
    folds: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> Choice:
    """Return the answer to serve.

    Candidates are those whose mean loss is within one standard error, paired and over groups, of the least one. Among
    the cheapest of them, and those that cost at most 10 % more, the one with the least loss is served.

    Args:
        losses: by name (rows,) NLL of the same rows, each by answers that know nothing of it, nats.
        costs: by name, in passes of the base.
        folds: (rows,) int64; groups: (rows,) int64, rows of one number are one unit; None: each row is.

    Raises:
        DataError: no answers, fewer than two rows, or columns of different length.
        NonFiniteError: NaN or infinity in a loss.
    """
    if not losses or len(folds) < 2:
        raise DataError(f"a choice needs answers and at least two rows, got {len(losses)} and {len(folds)}")
    check_columns(len(folds), **losses)
    name, within = _chosen(losses, costs, groups)
    others = torch.full((len(folds),), torch.nan, dtype=torch.float64)
    for number in torch.unique(folds):
        rest = folds != number
        some = {each: column[rest] for each, column in losses.items()}
        best, _ = _chosen(some, costs, None if groups is None else groups[rest])
        others[~rest] = losses[best][~rest].double()
    nll = {each: float(column.double().mean()) for each, column in losses.items()}
    shown = ", ".join(f"{each} {value:.3f}" for each, value in sorted(nll.items(), key=lambda pair: pair[1]))
    least = f"{name} costs least of those within a standard error of {within}" if within != name else f"{name} is best"
    cross_fitted = float(others.mean())
    reason = f"NLL (lower is better) of {len(folds)} rows, each by fits that do not know it: {shown}; {least}"
    if len(losses) > 1:
        reason += f". If each fold's answer is chosen on the other folds' rows, the NLL is {cross_fitted:.3f}"
    return Choice(name, reason, nll, cross_fitted)


def _chosen(
    losses: Mapping[str, torch.Tensor], costs: Mapping[str, float], groups: torch.Tensor | None
) -> tuple[str, str]:
    """Return the answer to serve, and the one of least loss."""
    means = {name: float(column.double().mean()) for name, column in losses.items()}
    best = min(means, key=means.__getitem__)

    def is_near(name: str) -> bool:
        mean, error = mean_and_error(losses[name].double() - losses[best].double(), groups)
        return name == best or not mean > error

    near = [name for name in losses if is_near(name)]
    most = _AS_CHEAP * min(costs[name] for name in near)
    return min((name for name in near if costs[name] <= most), key=means.__getitem__), best
