"""How well a score ranks the mistakes: areas under the ROC, precision-recall and risk-coverage curves.

Everywhere: ``score`` is (rows,), higher meaning less trusted; ``errors`` is (rows,) bool, true at mistakes. Rows
of equal score cannot be told apart, so every measure is the same whatever order they are in.

Every public function raises DataError for no rows, or shapes or types that do not fit, and NonFiniteError for NaN or
infinity in a score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from laplora.metrics.checks import checked_score


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the rows answered, when the rows with the highest scores are left out.

    Attributes:
        coverage: (rows,) share of rows answered, ascending, the last one 1.
        risk: (rows,) error rate among them.
        area: mean risk over all coverages (AURC); lower is better.
        excess: ``area`` above that of a score that puts every mistake last, at the same accuracy (E-AURC;
            Geifman, Uziel and El-Yaniv, arXiv 1805.08206, equation 4, with the exact sum); 0 is perfect.
    """

    coverage: torch.Tensor
    risk: torch.Tensor
    area: float
    excess: float


def error_auroc(score: torch.Tensor, errors: torch.Tensor) -> float | None:
    """Return the probability that a mistake has a higher score than a right answer, ties counting half.

    ``score`` is (rows,), higher meaning less trusted, ``errors`` (rows,) bool, true at mistakes. None when there is no
    mistake or no right answer: nothing to rank. Raises DataError for no rows or what does not fit, NonFiniteError.
    """
    score, errors = checked_score(score, errors)
    return none_if_nan(float(grouped_auroc(tie_groups(score)[1], errors)))


def error_auprc(score: torch.Tensor, errors: torch.Tensor) -> float | None:
    """Return the average precision of finding the mistakes from the highest score down.

    ``sum_i (recall_i - recall_i-1) precision_i`` over the distinct scores, without interpolation, which would be
    too optimistic (Davis and Goadrich 2006). A score that knows nothing has the error rate; None without a mistake.
    Arguments and errors as ``error_auroc``.
    """
    score, errors = checked_score(score, errors)
    return none_if_nan(float(grouped_auprc(tie_groups(score)[1], errors)))


def risk_coverage(score: torch.Tensor, errors: torch.Tensor) -> RiskCoverage:
    """Return the error rate among the k rows with the lowest scores, for k = 1 .. rows.

    Each row counts with the error rate of its group of equal scores: the expected curve over their random order.
    Arguments and errors as ``error_auroc``.
    """
    score, errors = checked_score(score, errors)
    risk = grouped_risk(tie_groups(score)[1], errors)
    rows, mistakes = len(score), int(errors.sum())
    answered = torch.arange(1, rows + 1, dtype=torch.float64)
    area = float(risk.mean())
    least = float(((answered - (rows - mistakes)).clamp_min(0) / answered).mean())
    # At a perfect ranking the two are the same sums in another order: rounding.
    return RiskCoverage(answered / rows, risk, area, max(0.0, area - least))


def tie_groups(score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the distinct scores (groups,) ascending, each row's group (rows,), and the groups' sizes (groups,)."""
    values, group, counts = torch.unique(score, return_inverse=True, return_counts=True)
    return values, group, counts


def grouped_auroc(group: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Return (...) the AUROC from each row's rank group (..., rows) int64, by counting pairs; NaN without a pair."""
    wrong, right = _by_group(group, errors)
    pairs = wrong.sum(-1) * right.sum(-1)
    return (wrong * (right.cumsum(-1) - right / 2)).sum(-1) / pairs


def grouped_auprc(group: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Return (...) the average precision from each row's rank group (..., rows) int64; NaN without a mistake."""
    wrong, right = (counts.flip(-1) for counts in _by_group(group, errors))
    recalled = wrong.cumsum(-1)
    flagged = (recalled + right.cumsum(-1)).clamp_min(1)  # groups that no row is in come with no mistake
    return (wrong * recalled / flagged).sum(-1) / wrong.sum(-1)


def grouped_risk(group: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Return (rows,) the risk among the k lowest rows, k = 1 .. rows, from each row's rank group (rows,) int64."""
    wrong, right = _by_group(group, errors)
    counts = wrong + right
    rate = wrong / counts.clamp_min(1)
    answered = torch.arange(1, len(group) + 1, dtype=torch.float64)
    return (rate.repeat_interleave(counts.long()).cumsum(0) / answered).clamp(0, 1)


def grouped_area(group: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
    """Return (...) the mean of ``grouped_risk`` from each row's rank group (..., rows) int64, without its curve.

    If N rows with W mistakes come before a group of rate r, the risks at its j-th row, (W + r j) / (N + j), are r + (W
    - r N) / (N + j): their sum takes harmonic numbers alone.
    """
    wrong, right = _by_group(group, errors)
    counts = wrong + right
    rate, answered = wrong / counts.clamp_min(1), counts.cumsum(-1)
    before, missed = answered - counts, wrong.cumsum(-1) - wrong
    harmonic = torch.arange(group.shape[-1] + 1, dtype=torch.float64).reciprocal()
    harmonic[0] = 0
    harmonic = harmonic.cumsum(0)
    further = harmonic[answered.long()] - harmonic[before.long()]
    return (wrong + (missed - rate * before) * further).sum(-1) / group.shape[-1]


def none_if_nan(value: float) -> float | None:
    """Return the value, or None for NaN."""
    return None if math.isnan(value) else value


def _by_group(group: torch.Tensor, errors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many mistakes and right answers are in each group, (..., groups) float64."""
    empty = torch.zeros(*group.shape[:-1], int(group.max()) + 1, dtype=torch.float64)
    return empty.scatter_add(-1, group, errors.double()), empty.scatter_add(-1, group, (~errors).double())
