"""The average of a question's answers in two orders of its options, both brought back to the one that the user gave.

The orders (``laplora.prompts.option_order``) are equal members of a mixture:

    probs = mean_o p_o,   Var p = mean_o Var_o p + Var_o p_o,   expected entropy = mean_o H_o.
"""

from __future__ import annotations

import torch

from laplora.linearised import PosteriorPredictive, entropy


def average_orders(first: PosteriorPredictive, other: PosteriorPredictive) -> PosteriorPredictive:
    """Return the mixture of two predictives of the same rows, float64."""
    probs = torch.stack([first.probs, other.probs]).double()
    mean = probs.mean(0)
    # About the mean: E[p^2] - E[p]^2 would lose every digit where the orders agree.
    within = torch.stack([first.std, other.std]).double().square().mean(0)
    variance = within + (probs - mean).square().mean(0)
    entropies = torch.stack([first.expected_entropy, other.expected_entropy]).double().mean(0)
    return PosteriorPredictive(mean / mean.sum(1, keepdim=True), variance.sqrt(), entropies)


def order_information(first: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return (rows,) ``H(mean) - mean_o H(p_o)``, the mutual information of label and order, nats.

    Args:
        first, other: (rows, classes) probabilities.
    """
    both = torch.stack([first, other]).double()
    # Jensen's inequality, which rounding can break by 1e-16.
    information: torch.Tensor = entropy(both.mean(0)) - torch.stack([entropy(one) for one in both]).mean(0)
    return information.clamp_min(0)
