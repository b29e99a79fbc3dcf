"""The mode of a head: Newton's method by conjugate gradients (Nocedal and Wright 2006, algorithm 7.1).

The Hessian ``I + A^T Lambda A`` is never made. A step is as exact as the gradient is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from laplora.head.errors import HeadError
from laplora.head.likelihood import Likelihood, hessian_times, loss_of, probs_of
from laplora.head.rows import Rows
from laplora.head.spaces import Solve, Space

#: Newton steps at most, and products with the Hessian in each.
_STEPS, _PRODUCTS = 100, 2000
#: Decrease of the objective before the last step at which a mode is found, nats in all: what is left is far less.
EXACT = 1e-12
#: A step is solved down to this share of that decrease.
_SOLVED = 1e-6
#: Largest residual of a step, as a share of the gradient.
_LOOSEST = 0.1
#: Share of the decrease that the slope promises which a step must have (Armijo), and of a step that is still tried.
_ENOUGH, _SHORTEST = 1e-4, 1e-12
#: Rounding of the objective as a share of it, of float32 products and of float64 ones.
_ROUNDING = (1e-5, 1e-11)


@dataclass(frozen=True)
class Labels:
    """Rows of which logits are asked, and their base logits, (rows, classes) float64."""

    base: torch.Tensor
    rows: Rows

    @staticmethod
    def of(rows: Rows, factor: float | None) -> Labels:
        """Return the rows with their offset times a factor, or 0, as their base."""
        return Labels(torch.zeros_like(rows.targets) if rows.offset is None else (factor or 0.0) * rows.offset, rows)

    def losses(self, moved: torch.Tensor) -> float:
        """Return the loss of all rows at ``base + moved``, nats."""
        rows = self.rows
        return float(loss_of(rows.likelihood, self.base + moved, rows.targets, rows.class_mask).sum())

    def residual(self, moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return probabilities p, and ``t - p``, 0 at impossible classes; (rows, classes) each."""
        probs = probs_of(self.rows.likelihood, self.base + moved, self.rows.class_mask)
        return probs, (self.rows.targets - probs) * self.rows.class_mask


class Mode(NamedTuple):
    """A minimum: its vector, and of the fitted rows what it moves logits by, and probabilities, (rows, classes)."""

    vector: torch.Tensor
    moved: torch.Tensor
    probs: torch.Tensor


def mode_of(space: Space, labels: Labels, start: torch.Tensor | None = None, left: float = 0.0) -> Mode:
    """Return the mode.

    Args:
        start: (rows, classes) ``moved`` at the mode of a like problem; the result does not depend on it.
        left: decrease that the last step may still have promised, as a share of the objective.

    Raises:
        HeadError: no step that improves the objective, or too many steps.
    """
    likelihood, moved = labels.rows.likelihood, torch.zeros_like(labels.base)
    vector, square, value = space.pull(moved), 0.0, labels.losses(moved)
    probs, residual = labels.residual(moved if start is None else start)
    rough, solve = space.rough, space.rough.preconditioner(probs)
    if start is not None:  # the loss as it is to second order there
        right = space.pull(residual + hessian_times(likelihood, probs, start))
        mode = solved(rough, likelihood, probs, right, solve, EXACT + left * value)
        image = space.image(mode)
        size = space.dot(mode, mode, image)
        if (reached := size / 2 + labels.losses(image)) < value:
            vector, moved, square, value = mode, image, size, reached
    for _ in range(_STEPS):
        probs, residual = labels.residual(moved)
        gradient = vector - space.pull(residual)
        last = EXACT + left * value
        step = solved(rough, likelihood, probs, -gradient, solve, last)
        image = space.image(step)
        promised, across = -space.dot(gradient, step, image), space.dot(vector, step, image)
        along, most = space.dot(step, step, image), value + _ROUNDING[space.exact] * max(abs(value), 1.0)
        share = 1.0
        while (square + 2 * share * across + share**2 * along) / 2 + labels.losses(
            moved + share * image
        ) > most - _ENOUGH * share * promised:
            share /= 2
            if share < _SHORTEST:
                break
        if (share < _SHORTEST or promised <= 0) and not (rough is space and solve is None):
            rough, solve = space, None  # rounding spoils the step
            continue
        if share < _SHORTEST:
            if space.exact:
                raise HeadError("no step improves the head's objective: check the features for extreme values")
            share, promised = 0.0, 0.0
        vector = vector + share * step
        moved = space.image(vector)
        square = space.dot(vector, vector, moved)
        value = square / 2 + labels.losses(moved)
        if promised <= 2 * last:
            return Mode(vector, moved, labels.residual(moved)[0])
    raise HeadError(f"the head's mode was not found in {_STEPS} steps: check the features for extreme values")


def solved(
    space: Space,
    likelihood: Likelihood,
    probs: torch.Tensor,
    right: torch.Tensor,
    solve: Solve | None,
    last: float,
    loosest: float = _LOOSEST,
) -> torch.Tensor:
    """Return what the inverse Hessian makes of ``right``, by a preconditioner's ``solve`` or None.

    The residual shrinks as ``right`` does, and is at most the share ``loosest`` of it, or the share ``_SOLVED`` of what
    the ``last`` step may promise, nats.
    """

    def plain(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return vector, space.image(vector)

    result, residual, solve = torch.zeros_like(right), right, solve or plain
    direction, image_of_direction = solve(right)
    size = space.dot(residual, direction, image_of_direction)
    if size <= 0 and solve is not plain:  # by its rounding
        return solved(space, likelihood, probs, right, None, last, loosest)
    enough = max(size * min(loosest**2, size / len(probs)), _SOLVED * last)
    for _ in range(_PRODUCTS):
        if size <= enough or size <= 0:
            break
        weighted = hessian_times(likelihood, probs, image_of_direction)
        bent = space.dot(direction, direction, image_of_direction) + float((image_of_direction * weighted).sum())
        length = size / bent
        result = result + length * direction
        residual = residual - length * (direction + space.pull(weighted))
        nearly, image_of_nearly = solve(residual)
        left = space.dot(residual, nearly, image_of_nearly)
        direction = nearly + left / size * direction
        image_of_direction = image_of_nearly + left / size * image_of_direction
        size = left
    return result
