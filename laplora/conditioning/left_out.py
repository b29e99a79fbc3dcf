"""Each row as the labels of other groups condition it: analytic leave-one-out, none by itself or its twin.

A group is one factor of the conditioned process. Dividing its Gaussian approximation out takes no further mode
(Vehtari et al., arXiv 1412.7461).
"""

from __future__ import annotations

import torch

from laplora.conditioning.mode import Mode
from laplora.errors import FactorizationError
from laplora.metrics.groups import members

#: Where a row's share of its precision comes this close to 1, what is left is rounding of float32 Jacobians.
_ROUNDING = 1e-7


def left_out_mean(mode: Mode, kernel: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
    """Return (rows, classes - 1) float64 the mean of each row under the labels of the other groups, nats.

    Args:
        kernel: (rows, classes - 1, rows, classes - 1), that the mode was found under.
        groups: (rows,) int64, rows of one number are left out together; None: each row alone.

    Raises:
        FactorizationError: a group that cannot be divided out beyond rounding.
    """
    rows, width = mode.alpha.shape
    found = torch.empty_like(mode.contrasts)
    for places in members(torch.arange(rows) if groups is None else groups):
        count, together = places.shape
        size, every, each = together * width, torch.arange(count), torch.arange(together)
        cross = kernel[places].view(count, size, rows, width)
        own = cross[every[:, None], :, places].transpose(1, 2).reshape(count, size, size)
        root = torch.zeros(count, together, width, together, width, dtype=torch.float64)
        root[:, each, :, each, :] = mode.root[places].transpose(0, 1)
        without, proper = divided_out(mode.covariance(own, cross), root.view(count, size, size))
        if not bool(proper.all()):
            raise FactorizationError("a row's label holds all that is known of it: the kernel is too wide")
        moved = (without @ mode.alpha[places].view(count, size, 1))[:, :, 0]
        found[places] = mode.contrasts[places] - moved.view(count, together, width)
    return found


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
