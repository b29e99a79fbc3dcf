"""The NLL of one predictive less another's on the same rows: the difference, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.metrics.checks import checked_probs
from laplora.metrics.scores import bootstrap_interval, row_nll


@dataclass(frozen=True)
class NllDifference:
    """The mean over rows, nats, below 0 where the first of the two is better.

    Attributes:
        low, high: of its 95 % interval. Two predictives that lose on the same rows differ by much less than the
            interval of either one.
    """

    difference: float
    low: float
    high: float


def nll_difference(
    probs: torch.Tensor,
    other: torch.Tensor,
    labels: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> NllDifference:
    """Return how far one predictive's NLL is above another's, by a bootstrap that draws the same rows for both.

    Args:
        probs, other: (rows, classes), each row summing to 1; labels: as of ``laplora.metrics.scores``.
        groups: as of ``bootstrap_interval``.

    Raises:
        DataError, NonFiniteError: as of ``laplora.metrics.scores``.
    """
    (probs, labels), (other, _) = checked_probs(probs, labels), checked_probs(other, labels)
    differences = row_nll(probs, labels) - row_nll(other, labels)
    return mean_difference(differences, groups=groups)


def mean_difference(
    differences: torch.Tensor, *, resamples: int = 1000, seed: int = 0, groups: torch.Tensor | None = None
) -> NllDifference:
    """Return what ``nll_difference`` does, of the (rows,) differences."""
    low, high = bootstrap_interval(
        lambda rows: differences[rows].mean(1),
        len(differences),
        resamples=resamples,
        generator=torch.Generator().manual_seed(seed),
        groups=groups,
    )
    return NllDifference(float(differences.mean()), low, high)
