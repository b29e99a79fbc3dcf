"""The mode of a head: Newton's method by conjugate gradients (Nocedal and Wright 2006, algorithm 7.1).

The Hessian ``I + A^T Lambda A`` is never made. A step is as exact as the gradient is small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.head.errors import HeadError
from laplora.head.likelihood import Likelihood, hessian_times, loss_of, probs_of
from laplora.head.spaces import Space

#: Newton steps at most, and products with the Hessian in each.
_STEPS, _PRODUCTS = 100, 2000
#: Decrease of the objective before the last step at which a mode is found, nats in all: what is left is far less.
EXACT = 1e-12
#: Largest residual of a step, as a share of the gradient.
_LOOSEST = 0.1
#: Share of the decrease that the slope promises which a step must have (Armijo), and halvings before it gives up.
_ENOUGH, _HALVINGS = 1e-4, 40
#: Rounding of the objective as a share of it, of float32 products and of float64 ones.
_ROUNDING = (1e-5, 1e-11)


@dataclass(frozen=True)
class Labels:
    """What is known of the fitted rows: base logits and targets (rows, classes) float64, and the class mask."""

    base: torch.Tensor
    targets: torch.Tensor
    class_mask: torch.Tensor
    likelihood: Likelihood

    def loss(self, moved: torch.Tensor) -> float:
        return float(loss_of(self.likelihood, self.base + moved, self.targets, self.class_mask).sum())

    def probs(self, moved: torch.Tensor) -> torch.Tensor:
        return probs_of(self.likelihood, self.base + moved, self.class_mask)

    def residual(self, probs: torch.Tensor) -> torch.Tensor:
        """Return ``t - p``, 0 at impossible classes."""
        return (self.targets - probs) * self.class_mask


@dataclass(frozen=True)
class Mode:
    """A minimum: its vector, and the fitted rows' probabilities and residual ``t - p`` there, (rows, classes)."""

    vector: torch.Tensor
    probs: torch.Tensor
    residual: torch.Tensor


def mode_of(space: Space, labels: Labels, start: torch.Tensor | None = None, left: float = EXACT) -> Mode:
    """Return the mode.

    Args:
        start: (rows, classes) residual at a like problem's mode; the result does not depend on it.
        left: decrease that the last step may still have promised, nats in all.

    Raises:
        HeadError: no step that improves the objective, or too many steps.
    """
    vector = space.pull(torch.zeros_like(labels.base))
    moved = space.image(vector)
    value, square = labels.loss(moved), 0.0
    if start is not None:
        vector, moved, value, square = _best_start(space, labels, start, value)
    for _ in range(_STEPS):
        probs = labels.probs(moved)
        gradient = vector - space.pull(labels.residual(probs))
        step, image = solved(space, labels.likelihood, probs, -gradient)
        promised = -space.dot(gradient, step, image)
        across, along = space.dot(vector, step, image), space.dot(step, step, image)
        rounding = _ROUNDING[space.exact] * max(abs(value), 1.0)
        share = _share(labels, moved, image, value, (square, across, along), promised, rounding)
        if not share and space.exact:
            raise HeadError("no step improves the head's objective: check the features for extreme values")
        vector = vector + share * step
        moved = space.image(vector)
        square = space.dot(vector, vector, moved)
        value = square / 2 + labels.loss(moved)
        if promised <= 2 * left or not share:
            probs = labels.probs(moved)
            return Mode(vector, probs, labels.residual(probs))
    raise HeadError(f"the head's mode was not found in {_STEPS} steps: check the features for extreme values")


def solved(
    space: Space,
    likelihood: Likelihood,
    probs: torch.Tensor,
    right: torch.Tensor,
    loosest: float = _LOOSEST,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the Hessian makes ``right`` of, and its image, to a residual that shrinks as ``right`` does.

    Args:
        loosest: largest residual, as a share of ``right``.
    """
    result, image = torch.zeros_like(right), torch.zeros_like(probs)
    solve = space.preconditioner(float((probs * (1 - probs)).mean()))
    residual, direction = right, solve(right)
    image_of_direction = space.image(direction)
    size = space.dot(residual, direction, image_of_direction)
    enough = size * min(loosest**2, size / len(probs))
    for _ in range(_PRODUCTS):
        if size <= enough or size <= 0:
            break
        weighted = hessian_times(likelihood, probs, image_of_direction)
        bent = space.dot(direction, direction, image_of_direction) + float((image_of_direction * weighted).sum())
        length = size / bent
        result, image = result + length * direction, image + length * image_of_direction
        residual = residual - length * (direction + space.pull(weighted))
        nearly = solve(residual)
        image_of_nearly = space.image(nearly)
        left = space.dot(residual, nearly, image_of_nearly)
        direction = nearly + left / size * direction
        image_of_direction = image_of_nearly + left / size * image_of_direction
        size = left
    return result, image


def _best_start(
    space: Space, labels: Labels, start: torch.Tensor, value: float
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Return the best of some shares of a start: its vector, image, objective and square."""
    whole = space.pull(start)
    image = space.image(whole)
    square = space.dot(whole, whole, image)
    best, share = value, 0.0
    for tried in (1.0, 0.5, 0.25, 0.1):
        found = tried**2 * square / 2 + labels.loss(tried * image)
        if found < best:
            best, share = found, tried
    return share * whole, share * image, best, share**2 * square


def _share(
    labels: Labels,
    moved: torch.Tensor,
    image: torch.Tensor,
    value: float,
    squares: tuple[float, float, float],
    promised: float,
    rounding: float,
) -> float:
    """Return the first of halved shares of a step that decreases the objective enough, or 0; no products are taken."""
    square, across, along = squares
    for halving in range(_HALVINGS):
        share = 0.5**halving
        tried = (square + 2 * share * across + share**2 * along) / 2 + labels.loss(moved + share * image)
        if tried <= value - _ENOUGH * share * promised + rounding:
            return share
    return 0.0
