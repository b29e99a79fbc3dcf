"""Split-conformal label sets by the name of their score, as an artifact records it."""

from __future__ import annotations

from typing import Literal

import torch

from laplora.decisions.temperature import aps_sets, aps_threshold, conformal_threshold, prediction_sets

ConformalScore = Literal["lac", "aps"]


def fit_label_sets(score: ConformalScore, probs: torch.Tensor, labels: torch.Tensor, level: float) -> float:
    """Return the threshold of label sets that hold the true label with probability at least ``level``.

    Args:
        score: ``lac`` (``conformal_threshold``) or ``aps`` (``aps_threshold``, deterministic).
        probs: (rows, classes); labels: (rows,) int64.

    Raises:
        ConfigError, DataError, NonFiniteError: as the two.
    """
    return (aps_threshold if score == "aps" else conformal_threshold)(probs, labels, level)


def label_sets(score: ConformalScore, probs: torch.Tensor, threshold: float, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows, classes) bool: the labels in each row's set, possible ones only.

    Args:
        threshold: from ``fit_label_sets`` with the same score.

    Raises:
        DataError, NonFiniteError: as ``prediction_sets`` and ``aps_sets``.
    """
    return (aps_sets if score == "aps" else prediction_sets)(probs, threshold, class_mask)
