"""Projected Jacobians of several labels as those of binary rows (``laplora.predictive.binary_rows``)."""

from __future__ import annotations

import math

import torch

from laplora.posterior.base import ProjectedJacobians

#: From a label's logit to the contrast of (absent, present).
TO_CONTRAST = -1 / math.sqrt(2)


def binary_means(means: torch.Tensor) -> torch.Tensor:
    """Return (rows * classes, 1) the contrasts of the labels' logits (rows, classes)."""
    return TO_CONTRAST * means.flatten()[:, None]


def binary_projected(projected: ProjectedJacobians) -> ProjectedJacobians:
    """Return projected Jacobians of the labels' logits as those of the contrasts of rows * classes binary rows."""
    diagonal = projected.rest.diagonal(dim1=1, dim2=2)  # (rows, parts, classes)
    return ProjectedJacobians(
        contrast_mean=binary_means(projected.contrast_mean),
        kept=TO_CONTRAST * projected.kept.flatten(0, 1)[:, None],
        rest=diagonal.mT.flatten(0, 1)[:, None, None] / 2,
    )
