"""Labelled rows of a random linear model, for conditioning."""

from __future__ import annotations

import torch

ROWS, CLASSES, OTHERS, WEIGHTS = 12, 4, 5, 60


def problem(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Return a linear model's rows, some with fewer possible classes."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    jacobians, others = normal(ROWS, CLASSES - 1, WEIGHTS), normal(OTHERS, CLASSES - 1, WEIGHTS)
    mask = torch.ones(ROWS, CLASSES, dtype=torch.bool)
    mask[3, 3:] = mask[7, 2:] = False
    labels = torch.randint(0, 2, (ROWS,), generator=draw)
    labels[0], labels[1] = 3, 2
    return {
        "jacobians": jacobians,
        "kernel": scale * torch.einsum("ncp,mdp->ncmd", jacobians, jacobians),
        "cross": scale * torch.einsum("ncp,mdp->ncmd", others, jacobians),
        "own": scale * torch.einsum("ncp,ndp->ncd", others, others),
        "mean": normal(ROWS, CLASSES - 1),
        "other_mean": normal(OTHERS, CLASSES - 1),
        "labels": labels,
        "mask": mask,
    }
