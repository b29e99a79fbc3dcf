"""The state that logits are read from, in the bases in which the posterior of a last layer is diagonal.

The contrasts are linear in the output layer's weights, ``z = V^T x``, with x the state that it reads. Under a Gaussian
prior of precision lambda and the curvature ``A (x) S`` of the rows that trained it (KFAC, Martens and Grosse, arXiv
1503.05671; a last-layer Laplace approximation, Kristiadi et al., arXiv 2002.10118), a weight between eigenvectors of A
and S, with the eigenvalues a and t, has the variance ``1 / (lambda + a t)``, and weights do not correlate.

Both moments are taken of the labelled rows themselves, without their labels, and the Hessians scaled to the number of
training rows. Only directions that some labelled row has an extent in matter between them and any other row. A row's
own state in the moments makes the kernel between it and the others smaller than that of a new row (docs/lab-notes.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from laplora.linearised import Likelihood, mean_contrast_hessian
from laplora.metrics.checks import check_finite

#: Eigenvalues below this share of the largest are rounding.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class LastLayer:
    """Labelled rows in the eigenbases of their last layer.

    Attributes:
        states: (rows, kept) float64, ``x^T U``.
        vectors: (width, kept), U; values: (kept,), a.
        directions: (directions, directions), columns v; curvature: (directions,), t.
    """

    states: torch.Tensor
    vectors: torch.Tensor
    values: torch.Tensor
    directions: torch.Tensor
    curvature: torch.Tensor

    @classmethod
    def of(cls, states: torch.Tensor, hessian: torch.Tensor, trained: float) -> LastLayer:
        """Return the last layer of labelled rows.

        Args:
            states: (rows, width), what their logits are read from.
            hessian: (directions, directions), their mean ``Lambda``.
            trained: rows that trained the weights, each as many times as its loss has the curvature of a label.

        Raises:
            NonFiniteError: NaN or infinity in a state.
        """
        check_finite(states, "the states that the logits are read from")
        x = states.double()
        left, singular, right = torch.linalg.svd(x, full_matrices=False)
        kept = singular > _ROUNDING * singular[0].clamp_min(torch.finfo(torch.float64).tiny)
        summed = hessian.double() * trained
        curvature, directions = torch.linalg.eigh((summed + summed.T) / 2)
        return cls(
            left[:, kept] * singular[kept],
            right.T[:, kept],
            singular[kept].square() / len(x),
            directions,
            curvature.clamp_min(0),
        )

    @property
    def variance(self) -> float:
        """Mean prior variance of a direction over the rows at a precision of 1, and not 0."""
        return float(self.states.square().sum(1).mean().clamp_min(torch.finfo(torch.float64).tiny))


@dataclass(frozen=True)
class LastStates:
    """What the last layer of some inputs is made of.

    Attributes:
        states: (inputs, width), what their logits are read from.
        probs: (inputs, classes), what the trained weights say of them.
        trained: rows that trained the weights, as of ``LastLayer.of``.
        likelihood: of the labels; class_weights: (classes,), of the loss that trained the weights; None: none.
    """

    states: torch.Tensor
    probs: torch.Tensor
    trained: float
    likelihood: Likelihood = "categorical"
    class_weights: torch.Tensor | None = None

    def take(self, inputs: torch.Tensor) -> LastStates:
        """Return some of the inputs."""
        return replace(self, states=self.states[inputs], probs=self.probs[inputs])

    def layer(self) -> LastLayer:
        """Return the last layer with the moments of these inputs; raises NonFiniteError as ``LastLayer.of``."""
        if self.likelihood == "categorical":
            return LastLayer.of(self.states, mean_contrast_hessian(self.probs, self.class_weights), self.trained)
        return LastLayer.of(self.states, torch.diag((self.probs * (1 - self.probs)).mean(0)), self.trained)
