"""The likelihood of labels given logits: one label of a row is right (softmax), or several (one sigmoid each).

``logits`` and ``targets`` are (rows, classes) float64, ``class_mask`` (rows, classes) bool. A target is a probability:
1 at a row's label, or soft. With ``p`` the probabilities, the gradient of a row's log-likelihood in its logits is
``t - p``, its negative Hessian ``Lambda = diag p - p p^T``, or ``diag(p (1 - p))`` with a sigmoid each.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

Likelihood = Literal["categorical", "bernoulli"]


def log_probs_of(likelihood: Likelihood, logits: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows, classes) log probabilities, -inf at impossible classes, nats."""
    if likelihood == "bernoulli":
        return logsigmoid(logits).masked_fill(~class_mask, -torch.inf)
    return logits.masked_fill(~class_mask, -torch.inf).log_softmax(-1)


def loss_of(
    likelihood: Likelihood, logits: torch.Tensor, targets: torch.Tensor, class_mask: torch.Tensor
) -> torch.Tensor:
    """Return (rows,) the cross-entropy of the targets, nats, summed over the labels under ``bernoulli``."""
    if likelihood == "bernoulli":
        terms = targets * logsigmoid(logits) + (1 - targets) * logsigmoid(-logits)
        return -terms.masked_fill(~class_mask, 0).sum(-1)
    return -(targets * log_probs_of(likelihood, logits, class_mask).masked_fill(~class_mask, 0)).sum(-1)


def probs_of(likelihood: Likelihood, logits: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows, classes) probabilities, exactly 0 at impossible classes."""
    if likelihood == "bernoulli":
        return logits.sigmoid() * class_mask
    return logits.masked_fill(~class_mask, -torch.inf).softmax(-1)


def hessian_times(likelihood: Likelihood, probs: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """Return ``Lambda v`` (rows, classes) of a change of the logits ``moved``."""
    if likelihood == "bernoulli":
        return probs * (1 - probs) * moved
    weighted = probs * moved
    return weighted - probs * weighted.sum(-1, keepdim=True)


def inverse_temperature(
    likelihood: Likelihood, offset: torch.Tensor, targets: torch.Tensor, class_mask: torch.Tensor
) -> float:
    """Return the factor b in [e^-5, e^5] of the offset that makes the targets likeliest; a convex problem, bisected.

    A Gamma(2, 1) density of b keeps it near 1 where few rows say little, as where no row is mistaken.
    """
    low, high = -5.0, 5.0
    for _ in range(48):
        middle = (low + high) / 2
        factor = math.exp(middle)
        probs = probs_of(likelihood, offset * factor, class_mask)
        slope = ((probs - targets * class_mask) * offset).sum() + 1 - 1 / factor
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())
