"""Each input as the labels of the other inputs condition it: analytic leave-one-out, none by itself.

An input is one factor of the conditioned process. Dividing its Gaussian approximation out takes no further mode
(Vehtari et al., arXiv 1412.7461).
"""

from __future__ import annotations

import torch

from laplora.conditioning.mode import Mode
from laplora.errors import FactorizationError

#: Where a row's share of its precision comes this close to 1, what is left is rounding of float32 Jacobians.
_ROUNDING = 1e-7


def left_out_mean(mode: Mode, kernel: torch.Tensor, together: int = 1) -> torch.Tensor:
    """Return (rows, classes - 1) float64 the mean of each row under the labels of the other inputs, nats.

    Args:
        kernel: (rows, classes - 1, rows, classes - 1), that the mode was found under.
        together: so many consecutive rows are of one input and are left out together.

    Raises:
        FactorizationError: an input that cannot be divided out beyond rounding.
    """
    rows, width = mode.alpha.shape
    inputs, size = rows // together, together * width
    grouped = kernel.view(inputs, size, inputs, size)
    places = torch.arange(inputs)
    covariance = mode.covariance(grouped[places, :, places], kernel.view(inputs, size, rows, width))
    root = torch.zeros(inputs, together, width, together, width, dtype=torch.float64)
    each = torch.arange(together)
    root[:, each, :, each, :] = mode.root.view(inputs, together, width, width).transpose(0, 1)
    without, proper = divided_out(covariance, root.view(inputs, size, size))
    if not bool(proper.all()):
        raise FactorizationError("a row's label holds all that is known of it: the kernel is too wide")
    moved = (without @ mode.alpha.view(inputs, size, 1))[:, :, 0]
    return mode.contrasts - moved.view(rows, width)


def divided_out(covariance: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the covariance of each row without its own factor, ``(V^-1 - Lambda)^-1``, float64, and where it is one.

    Args:
        covariance: (rows, directions, directions) with the factor, float64; may be singular.
        root: (rows, directions, directions) float64, symmetric, with ``root @ root = Lambda``.

    Returns:
        (rows, directions, directions), and proper (rows,) bool: false where ``V^-1 - Lambda`` is not positive definite
        beyond rounding; the covariance is meaningless there.
    """
    # V (I - Lambda V)^-1 = V + V R (I - R V R)^-1 R V with R R = Lambda: symmetric, and V may be singular.
    share, vectors = torch.linalg.eigh(root @ covariance @ root)
    proper = 1 - share[:, -1] > _ROUNDING
    half = covariance @ root @ vectors
    left = half / (1 - share).clamp_min(_ROUNDING)[:, None, :] @ half.mT
    return covariance + (left + left.mT) / 2, proper
