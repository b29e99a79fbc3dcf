"""Split-conformal label sets: thresholds from a calibration split, and the sets of new rows.

Scores by the name that an artifact records: ``lac`` (1 - p of the label), and of labels that have an order
``interval``: ``lac`` of ``between``, whose sets have no gap.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from laplora.errors import ConfigError, DataError
from laplora.metrics.checks import checked_labels, checked_values

ConformalScore = Literal["lac", "interval"]


def fit_label_sets(score: ConformalScore, probs: torch.Tensor, labels: torch.Tensor, level: float) -> float:
    """Return the threshold of label sets by the name of their score; the rest as ``conformal_threshold``."""
    return conformal_threshold(between(probs) if score == "interval" else probs, labels, level)


def label_sets(score: ConformalScore, probs: torch.Tensor, threshold: float, class_mask: torch.Tensor) -> torch.Tensor:
    """Return the label sets by the name of their score; the rest as ``prediction_sets``."""
    if score == "interval":
        probs = between(probs.masked_fill(~class_mask.to(probs.device), 0))
    return prediction_sets(probs, threshold, class_mask)


def between(probs: torch.Tensor) -> torch.Tensor:
    """Return (rows, classes) for each label the least of the largest probabilities up to it, and from it on.

    Labels of at least some value are the shortest interval of the order that holds all of at least this probability.
    """
    up, down = probs.cummax(1).values, probs.flip(1).cummax(1).values.flip(1)
    return up.minimum(down)


def fit_present_sets(score: ConformalScore, probs: torch.Tensor, labels: torch.Tensor, level: float) -> float:
    """Return the threshold of the labels that cannot be ruled out, where several of an input's labels may be right.

    It is fitted on the right labels alone, so that a new input's right label is in ``present_sets`` about as often as
    ``level`` says, however rare right labels are (after Vovk, arXiv 1209.2673, on conditional validity by label).
    Without a right label it is 1, and rules nothing out.

    Args:
        probs: (rows, 2) of absent and present, a row for each input and label; labels: (rows,) int64, 1 for present.
    """
    right = labels.cpu() == 1
    return fit_label_sets(score, probs[right], labels[right], level) if bool(right.any()) else 1.0


def present_sets(score: ConformalScore, probs: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return (rows,) bool whether the label of a row, as of ``fit_present_sets``, cannot be ruled out."""
    return label_sets(score, probs, threshold, torch.ones(probs.shape, dtype=torch.bool))[:, 1]


def conformal_threshold(probs: torch.Tensor, labels: torch.Tensor, level: float = 0.9) -> float:
    """Return the threshold q of split-conformal label sets (LAC: Sadinle, Lei and Wasserman, arXiv 1609.00451).

    With the score 1 - p(label), q is the ceil((rows + 1) level)-th smallest calibration score. If calibration
    and new rows are exchangeable, the set {k: 1 - p_k <= q} holds the true label with probability at least
    ``level``, and so does a larger one. With too few rows for the level, q is 1: the set holds every possible label.

    Takes probs (rows, classes) and labels (rows,) int64. Raises ConfigError for a level outside (0, 1), DataError for
    no rows or shapes and labels that do not fit, NonFiniteError for NaN and infinity.
    """
    return _threshold(1 - probs.double(), labels, level)


def prediction_sets(probs: torch.Tensor, threshold: float, class_mask: torch.Tensor) -> torch.Tensor:
    """Return (rows, classes) bool: the possible labels in each row's set, by a ``conformal_threshold``.

    The most probable label is in every set, also where it is less probable than the threshold asks: so no set
    contradicts its answer. Takes probs and class_mask (rows, classes); errors as ``conformal_threshold``.
    """
    probs, mask = checked_values(probs, class_mask)
    first = probs.masked_fill(~mask, -1).argmax(1, keepdim=True)
    return ((1 - probs <= threshold) & mask).scatter(1, first, torch.ones_like(first, dtype=torch.bool))


def empirical_coverage(sets: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of rows whose set holds their label: sets (rows, classes) bool, labels (rows,) int64."""
    if sets.ndim != 2 or sets.dtype != torch.bool:
        raise DataError(f"sets must be (rows, classes) bool, got {tuple(sets.shape)} {sets.dtype}")
    sets = sets.detach().cpu()
    labels = checked_labels(labels, torch.ones_like(sets))
    return float(sets.gather(1, labels[:, None]).double().mean())


def _threshold(scores: torch.Tensor, labels: torch.Tensor, level: float) -> float:
    """Return the ceil((rows + 1) level)-th smallest of the labels' scores, or 1 with too few rows."""
    scores, mask = checked_values(scores, torch.ones(scores.shape, dtype=torch.bool))
    labels = checked_labels(labels, mask)
    if not 0 < level < 1:
        raise ConfigError(f"the level of a conformal set is in (0, 1), got {level}")
    of_label = scores.gather(1, labels[:, None])[:, 0].sort().values
    # 0.55 * 100 is 55.00000000000001 in floating point, which would be one rank too many.
    rank = math.ceil((len(of_label) + 1) * level - 1e-9)
    return float(of_label[rank - 1]) if rank <= len(of_label) else 1.0
