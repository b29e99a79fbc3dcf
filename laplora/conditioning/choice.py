"""Choosing how far labels may move log probabilities: the kernel by which rows predict each other best.

What the labels correct is a calibrated predictive, MAP with a temperature or Laplace. Its ``Q^T log p`` are their prior
mean. An overconfident one would leave labels of mistakes a long way to go, and those of right answers nothing to say
(docs/lab-notes.md).

Few rows are left out one by one, analytically, by the kernel's matrix. Of more than ``MOST_LEFT_OUT`` rows x contrasts
each is predicted by the labels of the folds without it, and there is no matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from laplora.conditioning.kernel import Kernel
from laplora.conditioning.labelled import LabelledRows
from laplora.conditioning.last_layer import LastLayer, LastStates
from laplora.conditioning.left_out import left_out_mean
from laplora.conditioning.mode import posterior_mode
from laplora.conditioning.weights_mode import mode_weights
from laplora.errors import FactorizationError
from laplora.predictive.cross_fitting import FOLDS, fold_rows

#: Kernels that are tried: the mean variance of a contrast under their prior, nats squared. The first one moves nothing.
VARIANCES = (1e-4, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
#: Of more rows x contrasts than are left out one by one, these too: many labels have far to move (docs/lab-notes.md).
WIDE_VARIANCES = (*VARIANCES, 30.0, 100.0, 300.0)
#: And the prior variance of a constant that is added to every row: without one, or with one of 0.7 nats.
BIASES = (0.0, 0.5)
#: Rows x contrasts up to which rows are left out one by one: the time grows with the cube, 2 CPU minutes at this.
MOST_LEFT_OUT = 1500
#: Decrease of the objective that a fold's mode may be short of, nats a row.
_FOLD_CONVERGED = 1e-7


@dataclass(frozen=True)
class Choice:
    """Labelled rows under the kernel of least loss.

    Attributes:
        place: of the kernel among those that were tried, from the narrowest to the widest, without a constant first.
        kernel: of that place.
        weights: what all labels make of its weights, (kept + 1, directions) float64.
        left_out: (rows, classes - 1) float64, each row's mean under the labels of other inputs, nats.
        losses: by kernel, mean NLL of the rows so, nats; infinite where there is no mode, or one without a row.
    """

    place: int
    kernel: Kernel
    weights: torch.Tensor
    left_out: torch.Tensor
    losses: tuple[float, ...]


def candidates(
    layer: LastLayer, variances: Sequence[float] = VARIANCES, biases: Sequence[float] = BIASES, together: int = 1
) -> list[Kernel]:
    """Return the kernels that are tried, from the narrowest to the widest, without a constant first."""
    return [Kernel(layer, layer.variance / variance, bias, together) for bias in biases for variance in variances]


def choose_kernel(
    states: LastStates,
    rows: LabelledRows,
    variances: Sequence[float] | None = None,
    biases: Sequence[float] = BIASES,
    *,
    size: int | None = None,
) -> Choice:
    """Return the rows under the kernel by which each is predicted best from the labels of others.

    Args:
        states: of the rows' inputs.
        variances: that are tried; None: ``VARIANCES``, of many rows x contrasts ``WIDE_VARIANCES``.
        size: rows x contrasts that the rows are a part of, and choose as; None: they are all.

    Raises:
        DataError, NonFiniteError, FactorizationError: as ``posterior_mode`` and ``mode_weights``.
    """
    few = (size or rows.mean.numel()) <= MOST_LEFT_OUT
    variances = variances or (VARIANCES if few else WIDE_VARIANCES)
    tried = candidates(states.layer(), variances, biases, rows.together)
    if few:
        return _by_leave_one_out(tried, rows)
    means = fold_means(states, rows, variances, biases)
    losses = tuple(rows.loss(mean) if bool(mean.isfinite().all()) else float("inf") for mean in means)
    if (least := min(losses)) == float("inf"):
        raise FactorizationError("the labels have no mode under any kernel")
    place = losses.index(least)
    weights, _ = mode_weights(tried[place], rows.mean, rows.labels, rows.class_mask)
    return Choice(place, tried[place], weights, means[place], losses)


def _by_leave_one_out(tried: Sequence[Kernel], rows: LabelledRows) -> Choice:
    best: Choice | None = None
    losses: list[float] = []
    start = None
    for place, kernel in enumerate(tried):
        dense = kernel.dense()
        try:
            mode = posterior_mode(dense, rows.mean, rows.labels, rows.class_mask, start)
            start = mode.alpha
            left_out = left_out_mean(mode, dense, rows.parted)
        except FactorizationError:
            losses.append(float("inf"))
            continue
        losses.append(rows.loss(left_out))
        if best is None or losses[-1] < min(losses[:-1], default=float("inf")):
            best = Choice(place, kernel, kernel.weights(mode.alpha), left_out, ())
    if best is None:
        raise FactorizationError("no kernel leaves a row out")
    return replace(best, losses=tuple(losses))


def fold_means(
    states: LastStates, rows: LabelledRows, variances: Sequence[float] = VARIANCES, biases: Sequence[float] = BIASES
) -> list[torch.Tensor]:
    """Return by kernel each row's mean under the labels of the folds without it, (rows, classes - 1) float64, nats.

    A fold is predicted as new rows are: its states are in no moment of the kernel. NaN where a kernel has no mode.
    """
    means = [rows.mean.clone() for _ in biases for _ in variances]
    for fitted, held_out in fold_rows(len(rows.labels), FOLDS, groups=rows.parted):
        some, start = rows.take(fitted), None
        others = states.states[rows.inputs(held_out)]
        tried = candidates(states.take(rows.inputs(fitted)).layer(), variances, biases, rows.together)
        for kernel, mean in zip(tried, means, strict=True):
            # The mode under one kernel is where the next one's is looked for.
            try:
                weights, start = mode_weights(kernel, some.mean, some.labels, some.class_mask, start, _FOLD_CONVERGED)
            except FactorizationError:
                mean[held_out] = torch.nan
                continue
            mean[held_out] += kernel.contrasts(weights, others)
    return means
