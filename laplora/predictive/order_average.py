"""The average of a question's answers over the orders of its options, in the order that the user gave.

The orders of an input (``laplora.prompts.option_order``) are equal members of a mixture:

    probs = mean_o p_o,   Var p = mean_o Var_o p + Var_o p_o,   expected entropy = mean_o H_o.

Inputs have different numbers of orders: rows lie one after another, input by input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laplora.errors import DataError
from laplora.linearised import PosteriorPredictive, entropy
from laplora.prompts.option_order import Order, restore_logits


def average_by_input(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return (inputs, ...) float64: the mean over each input's rows.

    Args:
        values: (rows, ...), the rows of the first input, then those of the second, and so on.
        counts: rows of each input, at least one.

    Raises:
        DataError: an input without rows, or counts that do not add up to the rows.
    """
    if not counts or min(counts) < 1 or sum(counts) != len(values):
        raise DataError(f"{len(values)} rows do not divide into inputs of {list(counts)[:16]} rows, one or more each")
    return torch.stack([part.mean(0) for part in torch.split(values.double(), list(counts))])


def average_orders(
    predictive: PosteriorPredictive, orders: Sequence[Order], counts: Sequence[int]
) -> PosteriorPredictive:
    """Return each input's predictive in the user's order, averaged over the orders that were run.

    Args:
        predictive: of every prompt, its classes in the order shown.
        orders: the order shown of each prompt; counts: prompts of each input.

    Raises:
        ConfigError: not an order.
        DataError: numbers of rows, orders and counts that do not fit together.
    """
    probs = restore_logits(predictive.probs, orders)
    mean = average_by_input(probs, counts)
    each = torch.tensor(list(counts))
    # About the mean: E[p^2] - E[p]^2 would lose every digit where the orders agree.
    between = (probs - mean.repeat_interleave(each, 0)).square()
    variance = average_by_input(restore_logits(predictive.std, orders).square() + between, counts)
    return PosteriorPredictive(
        mean / mean.sum(1, keepdim=True), variance.sqrt(), average_by_input(predictive.expected_entropy, counts)
    )


def order_information(probs: torch.Tensor, orders: Sequence[Order], counts: Sequence[int]) -> torch.Tensor:
    """Return (inputs,) ``H(probs) - mean_o H(p_o)``, the mutual information of label and order, nats.

    Args:
        probs: (rows, classes) of every prompt, its classes in the order shown; orders and counts as above.
    """
    restored = restore_logits(probs.double(), orders)
    total = entropy(average_by_input(restored, counts))
    # Jensen's inequality, which rounding can break by 1e-16.
    information: torch.Tensor = total - average_by_input(entropy(restored), counts)
    return information.clamp_min(0)
