"""What conditioning adds to an input's log probabilities: a linear map of the state that its logits are read from.

Labels correct a predictive. Its ``Q^T log p(x)`` moves by ``x^T W + c``, which a head on the state learned of them
(``laplora.experts.last_state``).

Dividing the contrasts by a temperature T makes the mean move by T times as much as the log probabilities do. Averaging
over a posterior divides them by about ``kappa = sqrt(1 + pi/4 v)``, with v their variance (MacKay 1992, *The evidence
framework applied to classification networks*; the difference of two logits has the variance 2 v).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shift:
    """What conditioning adds to log probabilities.

    Attributes:
        weights: (width, directions) float64 on the CPU, W; the directions are those of the likelihood.
        constant: (directions,) float64, c, nats.
        temperature: of the predictive that is corrected; 1 for Laplace.
    """

    weights: torch.Tensor
    constant: torch.Tensor
    temperature: float = 1.0

    def __add__(self, other: Shift) -> Shift:
        """Return both shifts of one predictive, at this one's temperature."""
        return Shift(self.weights + other.weights, self.constant + other.constant, self.temperature)

    def of(self, states: torch.Tensor) -> torch.Tensor:
        """Return what it adds, (batch, directions) float64 on the CPU, nats.

        Args:
            states: (batch, width), what the logits were read from.
        """
        return states.detach().to("cpu", torch.float64) @ self.weights + self.constant


def tempering(covariance: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return ``kappa`` (rows, 1) float64, by which averaging over the posterior divides a row's contrasts.

    Args:
        covariance: (rows, classes - 1, classes - 1) of the contrasts, nats squared.
        class_mask: (rows, classes) bool; v is the mean variance of a row's possible contrasts.
    """
    variances = covariance.double().diagonal(dim1=-2, dim2=-1).clamp_min(0)
    possible = class_mask[:, 1:].to(variances)
    mean = (variances * possible).sum(-1, keepdim=True) / possible.sum(-1, keepdim=True)
    return (1 + math.pi / 4 * mean).sqrt()


def label_tempering(covariance: torch.Tensor) -> torch.Tensor:
    """Return the same for each label where several may be right, (rows, labels) float64.

    Args:
        covariance: (rows, labels, labels) of the labels' logits, whose contrasts have half the variance.
    """
    return (1 + math.pi / 8 * covariance.double().diagonal(dim1=-2, dim2=-1).clamp_min(0)).sqrt()
