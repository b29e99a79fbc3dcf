"""How familiar an input is: a share of the calibration rows, which neither adapter nor distances have seen.

An input's familiarity is the conformal p-value of its out-of-distribution score (``laplora.familiarity.ood_score``;
Vovk, Gammerman and Shafer 2005; Bates et al., arXiv 2104.08279)

    ``(1 + calibration rows whose score is at least as high) / (1 + calibration rows)``

from just above 0, farther than all of them, to 1. For a new row like the calibration rows, it is at most ``a`` with
probability at most ``a``. So a flag that is raised where it is at most ``a`` is raised on at most that share of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laplora.familiarity.ood_score import OodScore
from laplora.jacobians.states import States


@dataclass(frozen=True)
class Familiarity:
    """The out-of-distribution score of an input, and the reference rows that make it a p-value.

    Attributes:
        score: of an input.
        reference: (calibration rows,) float64, theirs, ascending.
        tokens: how many last tokens of a prompt its states are the mean of; an encoder's are that of all.
    """

    score: OodScore
    reference: torch.Tensor
    tokens: int = 1

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers whose states are compared, from 0."""
        return self.score.layers

    def of(self, states: States) -> torch.Tensor:
        """Return (batch,) float64 the familiarity, 0 to 1, of inputs by their states, after ``layers`` at least."""
        return percentile(self.score.of(states), self.reference)


def percentile(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return (batch,) float64 the conformal p-values of scores (batch,) among an ascending reference (rows,)."""
    at_least = len(reference) - torch.searchsorted(reference, values.double(), right=False)
    return (1 + at_least).double() / (1 + len(reference))


def false_alarms(wanted: float, rows: int) -> float:
    """Return the share of rows that the flag is raised on, at most: what is wanted, or what so many rows can tell."""
    return max(wanted, 1 / (rows + 1))


def is_unfamiliar(familiarity: torch.Tensor, share: float) -> torch.Tensor:
    """Return (batch,) bool where the flag is raised, for ``false_alarms`` of that share."""
    return familiarity <= share * (1 + 1e-9)  # 2 of 100 is not above 0.02 only because of rounding


def watched_layers(count: int, *, ends_alike: bool) -> tuple[int, ...]:
    """Return the layers whose states are compared, of ``count``: six at even steps from 1/4 to 3/4 of them, or one.

    Args:
        ends_alike: whether every prompt ends in the same words. Then their states sum up the text: the first layers'
            how it is spelled at its end, middle ones' what it says. Else the last token's is for long that of the
            text's last word, and the last layer alone is compared.
    """
    first, last = count // 4, min(3 * count // 4, count - 1)
    steps = (round(first + step * (last - first) / 5) for step in range(6))
    return tuple(dict.fromkeys(steps)) if ends_alike else (count - 1,)
