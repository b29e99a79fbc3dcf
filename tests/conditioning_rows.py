"""Labelled rows of a linear model whose weights are elsewhere than its prior mean says, for conditioning."""

from __future__ import annotations

import torch

from laplora.conditioning.labelled import LabelledRows
from laplora.conditioning.last_layer import LastStates
from laplora.linearised import class_probs, contrast_logits

WIDTH = 14


def moved_rows(
    shift: float, count: int = 120, classes: int = 4, trained: int = 5, masked: bool = False
) -> tuple[LastStates, LabelledRows, torch.Tensor]:
    """Return the states and the rows, and by how much their true contrasts are elsewhere, (rows, classes - 1).

    Args:
        shift: size of the move; masked: whether every third row has only half of the classes.
    """
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)
    here = torch.randn(WIDTH, classes - 1, generator=draw, dtype=torch.float64) / WIDTH**0.5
    moved = shift * torch.randn(WIDTH, classes - 1, generator=draw, dtype=torch.float64) / WIDTH**0.5
    mask = torch.ones(count, classes, dtype=torch.bool)
    if masked:
        mask[::3, classes // 2 :] = False
    true = class_probs(contrast_logits(states @ (here + moved)), mask)
    labels = torch.multinomial(true, 1, generator=draw)[:, 0]
    mean = (states @ here).masked_fill(~mask[:, 1:], 0)
    inputs = LastStates(states, class_probs(contrast_logits(mean), mask), trained)
    return inputs, LabelledRows(mean, labels, mask), states @ moved


def several_rows(shift: float, inputs: int = 40, labels: int = 5) -> tuple[LastStates, LabelledRows]:
    """Return inputs each with several labels that may be right, a binary row for each."""
    draw = torch.Generator().manual_seed(4)
    states = torch.randn(inputs, WIDTH, generator=draw, dtype=torch.float64)
    here = torch.randn(WIDTH, labels, generator=draw, dtype=torch.float64) / WIDTH**0.5
    moved = shift * torch.randn(WIDTH, labels, generator=draw, dtype=torch.float64) / WIDTH**0.5
    present = (states @ here).sigmoid()
    right = torch.bernoulli((states @ (here + moved)).sigmoid(), generator=draw).long()
    mask = torch.ones(inputs * labels, 2, dtype=torch.bool)
    mean = (states @ here).view(-1, 1) * -(0.5**0.5)
    return LastStates(states, present, 5, "bernoulli"), LabelledRows(mean, right.flatten(), mask, labels)
