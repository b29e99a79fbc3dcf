"""The mode of many labelled rows: Newton's method over the weights that the kernel is made of, without its matrix.

With ``K = F D F^T`` (``laplora.conditioning.kernel``) and ``w = D^{1/2} u`` the mode of ``laplora.conditioning.mode``
is the minimum of

    ``|u|^2 / 2 - sum_n log p(y_n | m_n + (F D^{1/2} u)_n)``,

a multinomial logistic regression. Its Hessian is ``I + D^{1/2} F^T Lambda F D^{1/2}``, whose products with a vector
give each Newton step by conjugate gradients (Nocedal and Wright 2006, *Numerical Optimization*, algorithm 7.1). The
step is as exact as the gradient is small. There is no covariance: only the mean moves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import one_hot

from laplora.conditioning.kernel import Kernel
from laplora.errors import FactorizationError
from laplora.linearised import class_log_probs, contrasts
from laplora.metrics.checks import check_finite, checked_labels

#: Newton steps at most, and products with the Hessian in each.
_STEPS, _PRODUCTS = 100, 1000
#: Decrease of the objective that is left at the mode, nats a row.
CONVERGED = 1e-10
#: Largest residual of a step, as a share of the gradient.
_LOOSEST = 0.1
#: Share of the decrease that the slope promises which a step must have (Armijo), and halvings before it gives up.
_ENOUGH, _HALVINGS = 1e-4, 30


def mode_weights(
    kernel: Kernel,
    contrast_mean: torch.Tensor,
    labels: torch.Tensor,
    class_mask: torch.Tensor,
    start: torch.Tensor | None = None,
    converged: float = CONVERGED,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mode of labelled rows: its weights, (kept + 1, directions), and its alpha, (rows, classes - 1).

    Args:
        contrast_mean: (rows, classes - 1), nats.
        labels: (rows,) int64; class_mask: (rows, classes) bool.
        start: alpha of a like problem; the result does not depend on it.
        converged: decrease of the objective that may be left, nats a row.

    Raises:
        DataError: no rows, or a label that is not a possible class.
        NonFiniteError: NaN or infinity in the mean.
        FactorizationError: no step that improves the objective.
    """
    labels, mask = checked_labels(labels, class_mask), class_mask.cpu()
    check_finite(contrast_mean, "the rows' logits")
    mean, helmert = contrast_mean.double(), contrasts(mask.shape[1])
    target, root = one_hot(labels, mask.shape[1]).double(), kernel.variances.sqrt()

    def state(u: torch.Tensor) -> tuple[float, torch.Tensor]:
        log_probs = class_log_probs((mean + kernel.contrasts(root * u)) @ helmert.T, mask)
        return float(u.square().sum() / 2 - log_probs.gather(1, labels[:, None]).sum()), log_probs.exp()

    u = torch.zeros_like(root) if start is None else root * kernel.pulled(start.double())
    value, probs = state(u)
    for _ in range(_STEPS):
        gradient = u - root * kernel.pulled((target - probs) @ helmert)

        def hessian_times(v: torch.Tensor, probs: torch.Tensor = probs) -> torch.Tensor:
            weighted = probs * (kernel.contrasts(root * v) @ helmert.T)
            return v + root * kernel.pulled((weighted - probs * weighted.sum(1, keepdim=True)) @ helmert)

        step = _solved(hessian_times, -gradient, len(labels))
        promised = -float((gradient * step).sum())
        u, value, probs = _along(state, u, step, value, promised)
        if promised <= 2 * converged * len(labels):
            return root * u, (target - probs) @ helmert
    raise FactorizationError(f"the labels' mode was not found in {_STEPS} steps")


def _solved(times: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, rows: int) -> torch.Tensor:
    """Return what ``times`` makes ``right`` of, to a residual that shrinks as fast as ``right`` does."""
    result, residual, direction = torch.zeros_like(right), right, right
    size = float(residual.square().sum())
    enough = size * min(_LOOSEST**2, size / rows)
    for _ in range(_PRODUCTS):
        product = times(direction)
        length = size / float((direction * product).sum()) if size else 0.0
        result, residual = result + length * direction, residual - length * product
        left = float(residual.square().sum())
        if left <= enough:
            break
        direction, size = residual + left / size * direction, left
    return result


def _along(
    state: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    u: torch.Tensor,
    step: torch.Tensor,
    value: float,
    promised: float,
) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Return the first of halved steps that decreases the objective enough, with value and probabilities there."""
    rounding = 1e-12 * abs(value)
    for halving in range(_HALVINGS):
        share = 0.5**halving
        tried = u + share * step
        found, probs = state(tried)
        if found <= value - _ENOUGH * share * promised + rounding:
            return tried, found, probs
    raise FactorizationError("no step along the labels' pull improves their objective")
