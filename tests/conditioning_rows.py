"""Labelled rows of a linear model whose weights are elsewhere than its prior mean says, for conditioning."""

from __future__ import annotations

import torch

from laplora.conditioning.labelled import LabelledRows
from laplora.conditioning.last_layer import LastStates
from laplora.conditioning.mode import Mode
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


def dense_left_out(kernel: torch.Tensor, mode: Mode, mean: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return each row's mean without its group's factors, (rows, classes - 1), by matrices of all rows.

    A factor is the Gaussian that the mode has for its row: of precision ``Lambda``, and of ``alpha`` more than that
    times the contrasts. ``(K^-1 + Lambda)^-1 = K - K Lambda (I + K Lambda)^-1 K`` takes no inverse of K.
    """
    rows, width = mode.alpha.shape
    matrix, result = kernel.reshape(rows * width, -1), torch.empty_like(mean)
    for group in groups.unique().tolist():
        others = (groups != group)[:, None, None]
        precision = torch.block_diag(*(others * mode.root @ mode.root))
        both = torch.eye(len(matrix), dtype=torch.float64) + matrix @ precision
        covariance = matrix - matrix @ precision @ torch.linalg.solve(both, matrix)
        pull = precision @ (mode.contrasts - mean).flatten() + (others[:, 0] * mode.alpha).flatten()
        result[groups == group] = (mean + (covariance @ pull).view(rows, width))[groups == group]
    return result


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
