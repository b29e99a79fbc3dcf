"""Linear maps of which each group of a batch's rows has its own weight: several adapters in one forward pass.

A weight with a first axis, the group's, is (groups, out, in). The rows of a batch are then the groups' rows, one group
after another, each as many. One batched matrix product gives all of them (as S-LoRA does for many users' adapters;
Sheng et al., arXiv 2311.03285).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def grouped_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x W^T + b`` for inputs (rows, ..., in), with each group's weight for its rows: (rows, ..., out).

    Args:
        weight: (groups, out, in), where ``groups`` divides the rows; or (out, in), one for all rows.
        bias: (groups, out) or (out,), as the weight.
    """
    if weight.dim() == 2:
        return F.linear(inputs, weight, bias)
    rows = inputs.reshape(len(weight), -1, inputs.shape[-1])
    outputs = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)
    return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


@contextmanager
def run_grouped(linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Let linears take a weight for each group of rows inside the block: ``grouped_linear`` of their parameters."""
    changed = [(linear, vars(linear).get("forward")) for linear in linears]  # accelerate's, of a model that is spread
    try:
        for linear, _ in changed:
            vars(linear)["forward"] = partial(_grouped, linear)
        yield
    finally:
        for linear, former in changed:
            vars(linear).pop("forward", None)
            if former is not None:
                vars(linear)["forward"] = former


def _grouped(linear: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return grouped_linear(inputs, linear.weight, linear.bias)
