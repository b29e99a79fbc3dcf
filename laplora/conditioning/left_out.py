"""Each input as the labels of the other inputs condition it: analytic leave-one-out, none by itself.

An input is one factor of the conditioned process. Dividing its Gaussian approximation out takes no further mode
(``laplora.prior.leave_one_out.divided_out``; Vehtari et al., arXiv 1412.7461).
"""

from __future__ import annotations

import torch

from laplora.conditioning.mode import Mode
from laplora.errors import FactorizationError
from laplora.prior.leave_one_out import divided_out


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
