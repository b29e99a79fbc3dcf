"""How familiar an input is: a share of the calibration rows, which neither adapter nor distances have seen.

An input's strangeness is the mean over some layers of the logarithm of its squared distance. Its familiarity is the
conformal p-value (Vovk, Gammerman and Shafer 2005; Bates et al., arXiv 2104.08279)

    ``(1 + calibration rows that are at least as strange) / (1 + calibration rows)``

from just above 0, stranger than all of them, to 1. Of a new row like the calibration rows, it is at most ``a`` with
probability at most ``a``. So a flag that is raised where it is at most ``a`` is raised on at most that share of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.errors import DataError
from laplora.familiarity.mahalanobis import LayerDistance, fit_layer
from laplora.metrics.checks import check_finite


@dataclass(frozen=True)
class Familiarity:
    """What says how familiar an input is.

    Attributes:
        layers: whose states are compared, from 0; distances: one each.
        reference: (calibration rows,) float64, their strangeness, ascending.
    """

    layers: tuple[int, ...]
    distances: tuple[LayerDistance, ...]
    reference: torch.Tensor

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (batch,) float64 the familiarity, 0 to 1, of states (batch, layers, hidden) after ``layers``."""
        return percentile(strangeness(self.distances, hidden), self.reference)


def fit_familiarity(
    layers: Sequence[int], hidden: torch.Tensor, classes: torch.Tensor, calibration: torch.Tensor
) -> Familiarity:
    """Return the familiarity by the states of training rows, with calibration rows as the reference.

    Args:
        hidden: (rows, layers, hidden), of training rows, at least two.
        classes: (rows,) int64, each row's class; all the same where a row may have several: one centre for all.
        calibration: (calibration rows, layers, hidden), of rows that the adapter was not trained on.

    Raises:
        DataError: fewer than two training rows, or no calibration row.
        NonFiniteError: NaN or infinity in a state.
    """
    if len(hidden) < 2 or not len(calibration):
        raise DataError(
            f"familiarity compares with at least 2 training rows and 1 calibration row, got {len(hidden)} and "
            f"{len(calibration)}"
        )
    check_finite(calibration, "a calibration row's hidden state")
    distances = fit_distances(hidden, classes)
    return Familiarity(tuple(layers), distances, strangeness(distances, calibration).sort().values)


def fit_distances(hidden: torch.Tensor, classes: torch.Tensor) -> tuple[LayerDistance, ...]:
    """Return a distance for each layer, to the states (rows, layers, hidden) of rows of some classes, (rows,) int64.

    Raises NonFiniteError for NaN or infinity in a state.
    """
    check_finite(hidden, "a training row's hidden state")
    return tuple(fit_layer(hidden[:, place], classes) for place in range(hidden.shape[1]))


def strangeness(distances: Sequence[LayerDistance], hidden: torch.Tensor) -> torch.Tensor:
    """Return (batch,) float64 the mean logarithm of the squared distances of states (batch, layers, hidden)."""
    squared = torch.stack([distance.squared(hidden[:, place]) for place, distance in enumerate(distances)])
    return squared.clamp_min(torch.finfo(torch.float64).tiny).log().mean(0)


def percentile(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return (batch,) float64 the conformal p-values of strangeness (batch,) among an ascending reference (rows,)."""
    at_least = len(reference) - torch.searchsorted(reference, values.double(), right=False)
    return (1 + at_least).double() / (1 + len(reference))


def false_alarms(wanted: float, rows: int) -> float:
    """Return the share of rows that the flag is raised on, at most: what is wanted, or what so many rows can tell."""
    return max(wanted, 1 / (rows + 1))


def is_unfamiliar(familiarity: torch.Tensor, share: float) -> torch.Tensor:
    """Return (batch,) bool where the flag is raised, for ``false_alarms`` of that share."""
    return familiarity <= share * (1 + 1e-9)  # 2 of 100 is not above 0.02 only because of rounding


def watched_layers(count: int, *, ends_alike: bool) -> tuple[int, ...]:
    """Return the layers whose states are compared, of ``count``: at most six at even steps in the middle half, or one.

    Args:
        ends_alike: whether every prompt ends in the same words. Then the last token's state sums up the text from the
            middle layers on. Else it is for long that of the text's last word, and the last layer alone is compared.
    """
    if not ends_alike:
        return (count - 1,)
    first, last = count // 4, min(3 * count // 4, count - 1)
    return tuple(dict.fromkeys(round(first + step * (last - first) / 5) for step in range(6)))
