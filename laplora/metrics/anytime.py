"""Bounds on a mean that hold at all times at once, however often somebody looks: confidence sequences by betting.

A gambler bets against "the mean is at most m". If that is true, the capital ever grows to 1 / chance with probability
``chance`` at most (Ville's inequality), so an m against which it did is ruled out: Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting", JRSS B 86 (2024), arXiv 2010.09686. The capital is shared out among
constant bets from small to large, and the best of them carries it (Cover's universal portfolio, 1991). The capitals of
strata are multiplied, and the split of the mean that is best for the claim counts (Spertus and Stark, "Sweeter than
SUITE", 2022). The order of rows does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from laplora.errors import DataError
from laplora.metrics.checks import checked_column

#: Stakes as shares of what may be lost at once, and halvings of the range in which a bound is looked for.
_STAKES = torch.logspace(-2.5, math.log10(0.95), 16, dtype=torch.float64)
_STEPS = 16
#: Splits of a mean between strata that are tried, and then around the best one.
_COARSE, _FINE = 64, 33
_EDGE = 1e-6


def lowest_mean(
    strata: Sequence[torch.Tensor], weights: Sequence[float], *, low: float, high: float, chance: float
) -> float:
    """Return a lower bound of a mean over one or two strata, true at all looks together with probability 1 - chance.

    Args:
        strata: the values of each, (rows,), which may have none; rows are independent draws of their stratum.
        weights: the strata's shares, which sum to 1.
        low, high: no value can be outside of them.
        chance: in (0, 1), of a bound above the mean at any look.

    Raises:
        DataError: more strata, other shapes, or a value outside of the range.
        NonFiniteError: a value that is no number.
    """
    held, wins = _held(strata, weights, low, high), math.log(1 / chance)
    known, unknown = 0.0, 1.0  # capitals fall as the mean that they bet against grows
    for _ in range(_STEPS):
        middle = (known + unknown) / 2
        known, unknown = (middle, unknown) if _least(held, middle) >= wins else (known, middle)
    return low + known * (high - low)


def is_above(
    mean: float, strata: Sequence[torch.Tensor], weights: Sequence[float], *, low: float, high: float, chance: float
) -> bool:
    """Return whether the lower bound is above a value; arguments and errors as of ``lowest_mean``."""
    held = _held(strata, weights, low, high)
    return _least(held, (mean - low) / (high - low)) >= math.log(1 / chance)


_Counted = tuple[torch.Tensor, torch.Tensor]


def _held(
    strata: Sequence[torch.Tensor], weights: Sequence[float], low: float, high: float
) -> list[tuple[_Counted, float]]:
    """Return what there is of each stratum that has a weight."""
    if len(strata) not in (1, 2) or len(weights) != len(strata):
        raise DataError(f"one or two strata and their weights are needed, got {len(strata)} and {len(weights)}")
    every = zip(strata, weights, strict=True)
    return [(_counted(values, low, high), weight) for values, weight in every if weight > 0]


def _counted(values: torch.Tensor, low: float, high: float) -> _Counted:
    """Return different values as shares of the range, and how many there are of each."""
    if len(values) == 0:
        return values.double(), values.double()
    shares = (checked_column(values, "values") - low) / (high - low)
    if shares.min() < -1e-9 or shares.max() > 1 + 1e-9:
        raise DataError(f"values have to be between {low} and {high}")
    different, counts = torch.unique(shares.clamp(0, 1), return_counts=True)
    return different, counts.double()


def _least(held: Sequence[tuple[_Counted, float]], mean: float) -> float:
    """Return the log capital against a mean, of strata at the split of it that leaves the least."""
    if len(held) == 1:
        return float(_capital(held[0][0], torch.tensor([mean], dtype=torch.float64)))
    (one, share), (other, rest) = held
    first, last = max(0.0, (mean - rest) / share), min(1.0, mean / share)

    def capitals(splits: torch.Tensor) -> torch.Tensor:
        return _capital(one, splits) + _capital(other, (mean - share * splits) / rest)

    coarse = torch.linspace(first, last, _COARSE, dtype=torch.float64)
    best = int(capitals(coarse).argmin())
    between = float(coarse[max(0, best - 1)]), float(coarse[min(_COARSE - 1, best + 1)])
    return float(capitals(torch.linspace(*between, _FINE, dtype=torch.float64)).min())


def _capital(rows: _Counted, means: torch.Tensor) -> torch.Tensor:
    """Return (means,) the log of the capital that bets against each mean have come to."""
    values, counts = rows
    if len(values) == 0:
        return torch.zeros_like(means)
    gains = values / means.clamp(_EDGE, 1)[:, None] - 1
    of_stakes = torch.stack([(stake * gains).log1p() @ counts for stake in _STAKES], 1)
    return of_stakes.logsumexp(1) - math.log(len(_STAKES))
