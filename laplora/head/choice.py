"""Choosing prior precisions by folds: how wide each block may reach to predict rows of other folds best.

First all blocks share one variance, on a grid of factors of ten that moves on while its edge is best. Then each block
has its own, by quasi-Newton steps along the gradient of the folds' loss in log variances, which implicit
differentiation at the mode gives for one more linear system (Foo, Do and Ng 2007, *Efficient multiple hyperparameter
learning for log-linear models*). Their logarithms have a normal prior about their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from laplora.head.folds import fold_numbers, parted
from laplora.head.likelihood import hessian_times, inverse_temperature, log_probs_of
from laplora.head.newton import EXACT, Labels, mode_of, solved
from laplora.head.rows import Rows
from laplora.head.scaling import Scaling
from laplora.head.spaces import Designs, Space, space_of

#: Prior precision of the constant where nothing chooses it: a standard deviation of 10 nats.
CONSTANT = 0.01
#: Variance of the blocks that is tried first, without an offset and with one, and the range that is searched.
_FIRST, _FIRST_WITH_OFFSET, _LEAST, _MOST = 10.0, 1.0, 1e-6, 1e8
#: With an offset, variance above which its logarithm has a normal prior of standard deviation 1: folds of few rows
#: whose answers are nearly all right may ask for any variance.
_WIDE = 10.0
#: Standard deviation of the blocks' log variances about their mean, a priori.
_APART = 1.5
#: Gradient steps at most, and the least gain of a step, nats a row.
_STEPS, _GAIN = 10, 2e-4
#: Share of its objective that a fold's mode may be short of: where classes part, the whole objective is near 0.
_CONVERGED = 3e-4
#: Bytes of all folds' features as float64 up to which what variances do not change is kept, not made again.
_KEPT_BYTES = 1 << 30
#: Residual of the linear system behind a gradient, as a share.
_ADJOINT = 1e-4

#: Precisions by block, the constant's as ``constant``, that were tried in order. With each the folds' NLL and the
#: variances' prior term, both by the number of rows, nats.
Tried = tuple[tuple[dict[str, float], float], ...]


def chosen(rows: Rows, folds: torch.Tensor, temper: bool, seed: int) -> tuple[Tried, torch.Tensor]:
    """Return what was tried, and each row's log probabilities, (rows, classes) float64, by the best without its fold.

    Best are the precisions under which rows of each fold are predicted best by the others. ``folds`` are (rows,) int64;
    if all are of one fold, folds are dealt anew. HeadError: fewer than two groups.
    """
    if len(torch.unique(folds)) < 2:
        folds = fold_numbers(len(rows), seed=seed, groups=rows.groups)
    parts = list(parted(folds))
    keep = 8 * sum(block.numel() for block in rows.blocks.values()) * len(parts) <= _KEPT_BYTES
    judged = [_Fold(rows, rest, fold, temper, keep) for rest, fold in parts]
    names = [*rows.blocks] + ([] if rows.conditional else ["constant"])
    free = len(names) if rows.offset is not None else len(rows.blocks)
    tried: list[tuple[dict[str, float], float]] = []
    answers = torch.empty_like(rows.targets)

    def loss(log_variances: torch.Tensor) -> _Point:
        whole = torch.cat([log_variances, log_variances.new_full((len(names) - free,), -math.log(CONSTANT))]).exp()
        losses, slopes, answered = zip(*(fold.loss(whole) for fold in judged), strict=True)
        block_variances = log_variances[: len(rows.blocks)]
        apart, wide = (block_variances - block_variances.mean()) / _APART, torch.zeros_like(block_variances)
        if rows.offset is not None:
            wide = (block_variances - math.log(_WIDE)).clamp_min(0)
        value = (sum(losses) + float(apart.square().sum() + wide.square().sum()) / 2) / len(rows)
        slope = torch.stack(slopes).sum(0)[:free]
        slope[: len(block_variances)] += apart / _APART + wide
        if value < min((each for _, each in tried), default=math.inf):
            answers[torch.cat([fold for _, fold in parts])] = torch.cat(answered)
        tried.append((dict(zip(names, (1 / whole).tolist(), strict=True)), value))
        return _Point(log_variances, value, slope / len(rows))

    first = math.log(_FIRST if rows.offset is None else _FIRST_WITH_OFFSET)
    _own(loss, _common(loss, torch.full((free,), first, dtype=torch.float64)))
    return tuple(tried), answers


#: Log variances that were tried, (blocks,), the folds' mean loss, nats a row, and its slope, (blocks,).
class _Point(NamedTuple):
    place: torch.Tensor
    value: float
    slope: torch.Tensor


def _common(loss: Callable[[torch.Tensor], _Point], first: torch.Tensor) -> _Point:
    """Return the point of least loss on the grid of one variance for all, which moves on while its edge is best."""
    best = loss(first)
    step = math.copysign(math.log(10), -float(best.slope.sum()))
    while math.log(_LEAST) <= float(best.place[0]) + step <= math.log(_MOST):
        candidate = loss(best.place + step)
        if candidate.value > best.value - _GAIN:
            break
        best = candidate
    return best


def _own(loss: Callable[[torch.Tensor], _Point], best: _Point) -> None:
    """Walk down the loss by BFGS steps of at most a factor of ten a block; ``loss`` keeps what was tried."""
    unit = torch.eye(len(best.place), dtype=torch.float64)
    inverse = unit / best.slope.abs().max().clamp_min(1e-12)
    for _ in range(_STEPS):
        step = -(inverse @ best.slope)
        step = step * min(1.0, math.log(10) / max(float(step.abs().max()), 1e-12))
        moved = (best.place + step).clamp(math.log(_LEAST), math.log(_MOST))
        step = moved - best.place
        if -float(best.slope @ step) < _GAIN:
            return
        candidate = loss(moved)
        bend = candidate.slope - best.slope
        if (curved := float(step @ bend)) > 1e-12:
            left = unit - torch.outer(step, bend) / curved
            inverse = left @ inverse @ left.T + torch.outer(step, step) / curved
        elif candidate.value > best.value:
            inverse = inverse / 4
        gained = best.value - candidate.value
        best = candidate if gained > 0 else best
        if abs(gained) < _GAIN:
            return


class _Fold:
    """Rows that are fitted and rows that are judged by them, with all that variances do not change."""

    def __init__(self, rows: Rows, fitted: torch.Tensor, judged: torch.Tensor, temper: bool, keep: bool) -> None:
        self._rows, self._fitted, self._judged = rows, fitted, judged
        known, left = rows.at(fitted, features=False), rows.at(judged, features=False)
        factor = factor_of(known, temper)
        self._labels, self._left = Labels.of(known, factor), Labels.of(left, factor)
        self._scaling = Scaling.of(rows.at(fitted))
        self._space = self._made() if keep else None
        self._start: torch.Tensor | None = None

    def _made(self) -> Space:
        fitted, judged = self._rows.at(self._fitted), self._rows.at(self._judged)
        return space_of(Designs.of(fitted, judged, self._scaling, exact=False), exact=False, keep=True)

    def loss(self, variances: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Return the judged rows' loss, nats in all, its slopes in log variances, (blocks,), and log probabilities."""
        space, likelihood = (self._space or self._made()).at(variances), self._rows.likelihood
        mode = mode_of(space, self._labels, self._start, _CONVERGED)
        self._start = mode.moved
        moved, left = space.answers(mode.vector), self._left
        missed = -left.residual(moved)[1]
        right = space.adjoint_right(missed, lambda change: hessian_times(likelihood, mode.probs, change))
        solve = space.preconditioner(mode.probs)
        adjoint = solved(space, likelihood, mode.probs, right, solve, EXACT, _ADJOINT)
        log_probs = log_probs_of(likelihood, left.base + moved, left.rows.class_mask)
        return left.losses(moved), space.slopes(mode.vector, missed, adjoint), log_probs


def factor_of(rows: Rows, temper: bool) -> float | None:
    """Return the factor of the rows' offset: its inverse temperature, or 1 without one; None: no offset."""
    if rows.offset is None:
        return None
    return inverse_temperature(rows.likelihood, rows.offset, rows.targets, rows.class_mask) if temper else 1.0
