"""Choosing prior precisions by folds: how wide each block may reach to predict rows of other folds best.

First all blocks share one variance, on a grid of factors of ten that moves on while its edge is best. Then each block
has its own, by quasi-Newton steps along the gradient of the folds' loss in log variances, which implicit
differentiation at the mode gives for one more linear system (Foo, Do and Ng 2007, *Efficient multiple hyperparameter
learning for log-linear models*). A block of no use goes out: its precision grows without end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from laplora.head.folds import fold_numbers, parted
from laplora.head.likelihood import hessian_times, inverse_temperature, loss_of
from laplora.head.newton import Labels, mode_of, solved
from laplora.head.rows import Rows
from laplora.head.scaling import Scaling
from laplora.head.spaces import Designs, Space, space_of

#: Prior precision of the constant where nothing chooses it: a standard deviation of 10 nats.
CONSTANT = 0.01
#: Variance of the blocks that is tried first, without an offset and with one, and the range that is searched.
_FIRST, _FIRST_WITH_OFFSET, _LEAST, _MOST = 10.0, 1.0, 1e-8, 1e8
#: Gradient steps at most, and the least gain of a step, nats a row.
_STEPS, _GAIN = 10, 2e-4
#: Decrease of the objective that a fold's mode may be short of, nats a row.
_CONVERGED = 1e-5
#: Residual of the linear system behind a gradient, as a share.
_ADJOINT = 0.002


@dataclass(frozen=True)
class Choice:
    """The precisions by block, the constant's as ``constant``, and the mean NLL (nats) of all that were tried."""

    precisions: dict[str, float]
    tried: tuple[tuple[dict[str, float], float], ...]


def chosen(rows: Rows, folds: torch.Tensor, temper: bool, seed: int) -> Choice:
    """Return the precisions under which the rows of each fold are predicted best by the others.

    Args:
        folds: (rows,) int64; if all are of one fold, folds are dealt anew.

    Raises:
        HeadError: fewer than two groups.
    """
    if len(torch.unique(folds)) < 2:
        folds = fold_numbers(len(rows), seed=seed, groups=rows.groups)
    judged = [_Fold(rows.at(rest), rows.at(fold), temper) for rest, fold in parted(folds)]
    names = [*rows.blocks] + ([] if rows.conditional else ["constant"])
    free = len(names) if rows.offset is not None else len(rows.blocks)
    tried: list[tuple[dict[str, float], float]] = []

    def loss(log_variances: torch.Tensor, slope: bool) -> tuple[float, torch.Tensor]:
        whole = torch.cat([log_variances, log_variances.new_full((len(names) - free,), -math.log(CONSTANT))]).exp()
        parts = [fold.loss(whole, slope) for fold in judged]
        mean = sum(part[0] for part in parts) / len(rows)
        tried.append((dict(zip(names, (1 / whole).tolist(), strict=True)), mean))
        return mean, torch.stack([part[1] for part in parts]).sum(0)[:free] / len(rows)

    first = _FIRST if rows.offset is None else _FIRST_WITH_OFFSET
    start = _common(lambda value: loss(torch.full((free,), value, dtype=torch.float64), False)[0], first)
    _own(loss, torch.full((free,), start, dtype=torch.float64))
    return Choice(min(tried, key=lambda pair: pair[1])[0], tuple(tried))


def _common(loss: Callable[[float], float], first: float) -> float:
    """Return the log variance of least loss on the grid that moves on while its edge is best."""
    step, best = math.log(10), math.log(first)
    least = loss(best)
    for direction in (step, -step):
        moved = False
        while math.log(_LEAST) <= best + direction <= math.log(_MOST):
            found = loss(best + direction)
            if found > least - _GAIN:
                break
            best, least, moved = best + direction, found, True
        if moved:
            break
    return best


def _own(loss: Callable[[torch.Tensor, bool], tuple[float, torch.Tensor]], place: torch.Tensor) -> None:
    """Walk down the loss by BFGS steps of at most a factor of ten a block; the loss keeps what was tried."""
    value, slope = loss(place, True)
    inverse = torch.eye(len(place)).double() / slope.abs().max().clamp_min(1e-12)
    for _ in range(_STEPS):
        step = -(inverse @ slope)
        step = step * min(1.0, math.log(10) / max(float(step.abs().max()), 1e-12))
        moved = (place + step).clamp(math.log(_LEAST), math.log(_MOST))
        found, new = loss(moved, True)
        gained = value - found
        step, bend = moved - place, new - slope
        if (curved := float(step @ bend)) > 1e-12:
            left = torch.eye(len(place)).double() - torch.outer(step, bend) / curved
            inverse = left @ inverse @ left.T + torch.outer(step, step) / curved
        elif gained < 0:
            inverse = inverse / 4
        if gained > 0:
            place, value, slope = moved, found, new
        if -_GAIN < gained < _GAIN:
            return


class _Fold:
    """Rows that are fitted and rows that are judged by them, with all that variances do not change."""

    def __init__(self, fitted: Rows, judged: Rows, temper: bool) -> None:
        base, factor = base_of(fitted, temper)
        self._labels = Labels(base, fitted.targets, fitted.class_mask, fitted.likelihood)
        answered = torch.zeros_like(judged.targets) if judged.offset is None else factor * judged.offset
        self._judged = Labels(answered, judged.targets, judged.class_mask, judged.likelihood)
        designs = Designs.of(fitted, judged, Scaling.of(fitted), exact=False)
        self._space: Space = space_of(designs, exact=False, keep=True)
        self._start: torch.Tensor | None = None

    def loss(self, variances: torch.Tensor, slope: bool) -> tuple[float, torch.Tensor]:
        """Return the judged rows' loss, nats in all, and if asked its derivatives in log variances, (blocks,)."""
        space, labels, judged = self._space.at(variances), self._labels, self._judged
        mode = mode_of(space, labels, self._start, left=_CONVERGED * len(labels.base))
        self._start = mode.residual
        moved = space.answers(mode.vector)
        value = float(loss_of(judged.likelihood, judged.base + moved, judged.targets, judged.class_mask).sum())
        if not slope:
            return value, torch.zeros_like(variances)
        missed = -judged.residual(judged.probs(moved))
        right = space.adjoint_right(missed, lambda change: hessian_times(labels.likelihood, mode.probs, change))
        adjoint, _ = solved(space, labels.likelihood, mode.probs, right, _ADJOINT)
        return value, space.slopes(mode.vector, missed, adjoint)


def base_of(rows: Rows, temper: bool) -> tuple[torch.Tensor, float]:
    """Return the rows' base logits (rows, classes), and the factor of their offset."""
    if rows.offset is None:
        return torch.zeros_like(rows.targets), 1.0
    factor = inverse_temperature(rows.likelihood, rows.offset, rows.targets, rows.class_mask) if temper else 1.0
    return factor * rows.offset, factor
