"""The kernel between rows by the state that their logits are read from: the posterior of a last layer.

The contrasts are linear in the output layer's weights, ``z = V^T x``, with x the state that it reads. Under a Gaussian
prior of precision lambda and the curvature ``A (x) S`` of the rows that trained it (KFAC, Martens and Grosse, arXiv
1503.05671; a last-layer Laplace approximation, Kristiadi et al., arXiv 2002.10118), the kernel between rows is

    ``k(x, x') = sum_j v_j v_j^T  x^T U diag(1 / (lambda + a t_j)) U^T x'``

with (a, U) the eigenpairs of the mean of ``x x^T`` and (t, v) those of the summed Hessians. Both moments are taken of
the labelled rows themselves, without their labels, and the Hessians scaled to the number of training rows. Only
directions that some labelled row has an extent in matter between them and any other row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    def of(cls, states: torch.Tensor, hessians: torch.Tensor, trained: int) -> LastLayer:
        """Return the last layer of labelled rows.

        Args:
            states: (rows, width), what their logits are read from.
            hessians: (rows, directions, directions), ``Lambda`` of each.
            trained: rows that trained the weights.

        Raises:
            NonFiniteError: NaN or infinity in a state.
        """
        check_finite(states, "the states that the logits are read from")
        x = states.double()
        left, singular, right = torch.linalg.svd(x, full_matrices=False)
        kept = singular > _ROUNDING * singular[0].clamp_min(torch.finfo(torch.float64).tiny)
        summed = hessians.double().mean(0) * trained
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
        """Mean prior variance of a direction over the rows at a precision of 1."""
        return float(self.states.square().sum(1).mean())

    def kernel(self, precision: float) -> torch.Tensor:
        """Return the kernel between the rows, (rows, directions, rows, directions) float64."""
        rows, count = len(self.states), len(self.curvature)
        result = torch.zeros(rows, count, rows, count, dtype=torch.float64)
        for vector, t in zip(self.directions.T, self.curvature, strict=True):
            between = (self.states / (precision + self.values * t)) @ self.states.T
            result += torch.einsum("nm,c,d->ncmd", between, vector, vector)
        return result

    def weights(self, alpha: torch.Tensor, precision: float) -> torch.Tensor:
        """Return what conditioning adds to the layer's weights, (width, directions) float64.

        So that ``x^T weights`` is the kernel between x and the rows times alpha.

        Args:
            alpha: (rows, directions) float64, of ``laplora.conditioning.mode.Mode``.
        """
        pulled = self.states.T @ (alpha @ self.directions)
        scaled = pulled / (precision + self.values[:, None] * self.curvature)
        return self.vectors @ scaled @ self.directions.T
