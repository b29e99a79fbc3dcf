"""The kernel between rows by the state that their logits are read from, and the weights that it is made of.

With ``F`` the linear map from weights in the last layer's eigenbases, and a constant for each direction, to the rows'
contrasts, and ``D`` the weights' variances, it is ``K = F D F^T``:

    ``k(x, x') = sum_j v_j v_j^T  (x^T U diag(1 / (lambda + a t_j)) U^T x' + bias)``

(``laplora.conditioning.last_layer`` has the symbols). A product with it costs ``rows (kept + directions) directions``
and no matrix of it is needed. What labels make of other rows is ``F' w`` with ``w = D F^T alpha``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from laplora.conditioning.last_layer import LastLayer
from laplora.posterior.binary import TO_CONTRAST


@dataclass(frozen=True)
class Kernel:
    """The kernel between labelled rows, nats squared.

    Weights are (kept + 1, directions) float64 in the layer's eigenbases, the constant last. Contrasts are (rows,
    classes - 1) float64.

    Attributes:
        layer: of the rows' inputs.
        precision: of the last layer's prior; bias: prior variance of the constant, nats squared.
        together: so many consecutive rows are of one input: 1, or where several labels may be right their number.
    """

    layer: LastLayer
    precision: float
    bias: float = 0.0
    together: int = 1

    def __len__(self) -> int:
        return len(self.layer.states) * self.together

    @cached_property
    def variances(self) -> torch.Tensor:
        """Prior variance of each weight, (kept + 1, directions)."""
        own = 1 / (self.precision + self.layer.values[:, None] * self.layer.curvature)
        return torch.cat([own, own.new_full((1, own.shape[1]), self.bias)])

    def contrasts(self, weights: torch.Tensor, states: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``F w``, the contrasts of the rows under weights, nats; or of other rows.

        Args:
            states: (inputs, width) of the other rows, what their logits are read from.
        """
        turned = self.layer.states if states is None else states.double() @ self.layer.vectors
        found = (turned @ weights[:-1] + weights[-1]) @ self.layer.directions.T
        return found if self.together == 1 else TO_CONTRAST * found.view(-1, 1)

    def pulled(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return ``F^T alpha``, how a pull at each row's contrasts pulls at the weights."""
        inputs = alpha if self.together == 1 else TO_CONTRAST * alpha.view(-1, self.together)
        turned = inputs @ self.layer.directions
        return torch.cat([self.layer.states.T @ turned, turned.sum(0, keepdim=True)])

    def weights(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return ``D F^T alpha``: of any rows ``contrasts`` of it is the kernel between them and these, times alpha."""
        return self.variances * self.pulled(alpha)

    def times(self, alpha: torch.Tensor) -> torch.Tensor:
        """Return ``K alpha``, nats."""
        return self.contrasts(self.weights(alpha))

    def layer_weights(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weights as what is added to the layer's, (width, directions), and to its bias, (directions,)."""
        turned = weights @ self.layer.directions.T
        return self.layer.vectors @ turned[:-1], turned[-1]

    def dense(self) -> torch.Tensor:
        """Return the kernel as a matrix, (rows, classes - 1, rows, classes - 1) float64."""
        states, directions = self.layer.states, self.layer.directions
        inputs, count = len(states), len(directions)
        between = torch.stack([(states * own[:-1]) @ states.T + own[-1] for own in self.variances.T], -1)
        outer = torch.einsum("cj,dj->jcd", directions, directions).flatten(1)
        found = (between.flatten(0, 1) @ outer).view(inputs, inputs, count, count).transpose(1, 2)
        if self.together == 1:
            return found.contiguous()
        return TO_CONTRAST**2 * found.reshape(len(self), 1, len(self), 1)
