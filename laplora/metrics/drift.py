"""Whether recent values are still distributed as earlier ones: two-sample tests on one number per row.

Both statistics are gaps between cumulative distributions, 0 to 1: the largest gap anywhere, or the gap at one place.
Rows of each sample count as independent: repeated inputs make the p-values too small. Everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from laplora.errors import ConfigError, DataError, NonFiniteError

#: Terms of the Kolmogorov series; what is left out is below 1e-30 wherever the series is used.
_TERMS = 60
#: Below this the series does not converge in its terms, and the p-value is 1 to 13 digits.
_SMALLEST_SCALED_GAP = 0.2


@dataclass(frozen=True)
class Drift:
    """How far recent values are from the reference.

    Attributes:
        gap: between the two cumulative distributions, 0 to 1.
        p_value: probability of a gap at least as large if both samples came from one distribution.
        reference_rows, recent_rows: sizes of the samples.
    """

    gap: float
    p_value: float
    reference_rows: int
    recent_rows: int


def kolmogorov_smirnov(reference: torch.Tensor, recent: torch.Tensor) -> Drift:
    """Return the two-sample Kolmogorov-Smirnov statistic, the largest gap anywhere, and its p-value.

    The p-value is asymptotic with the finite-sample correction of Stephens (1970); equal values make it too large,
    never too small.

    Args:
        reference: (n,) and recent: (m,), at least one value each.

    Raises:
        DataError: an empty sample, or another shape.
        NonFiniteError: NaN or infinity in a sample.
    """
    reference, recent = _checked(reference), _checked(recent)
    places = torch.cat([reference, recent])
    below = [torch.searchsorted(sample, places, right=True).double() / len(sample) for sample in (reference, recent)]
    gap = float((below[0] - below[1]).abs().max())
    root = math.sqrt(len(reference) * len(recent) / (len(reference) + len(recent)))
    return Drift(gap, _kolmogorov_tail((root + 0.12 + 0.11 / root) * gap), len(reference), len(recent))


def gap_above(threshold: float, above: int, rows: int, recent: torch.Tensor) -> Drift:
    """Return the gap between the shares of rows above a threshold, with Fisher's exact two-sided p-value.

    For a reference of which only one quantile was kept: what happens elsewhere in the distribution is not seen.

    Args:
        above: reference rows above the threshold, of ``rows``.
        recent: (m,) values, at least one.

    Raises:
        ConfigError: ``above`` outside 0 to ``rows``, or no reference rows.
        DataError, NonFiniteError: as ``kolmogorov_smirnov``.
    """
    if rows < 1 or not 0 <= above <= rows:
        raise ConfigError(f"expected 0 <= above <= rows and rows >= 1, got {above} of {rows}")
    recent = _checked(recent)
    count, seen = len(recent), int((recent > threshold).sum())
    total = above + seen
    # Given how many of all rows are above, each number of them among the recent ones has a hypergeometric mass.
    k = torch.arange(max(0, total - rows), min(total, count) + 1, dtype=torch.float64)
    log_mass = _log_choose(count, k) + _log_choose(rows, total - k)
    mass = (log_mass - log_mass.logsumexp(0)).exp()
    own = float(mass[seen - int(k[0])])
    # Masses that are equal but for rounding are as unlikely as what was seen.
    p_value = float(mass[mass <= own * (1 + 1e-7)].sum())
    return Drift(abs(seen / count - above / rows), min(1.0, p_value), rows, count)


def _kolmogorov_tail(scaled_gap: float) -> float:
    if scaled_gap < _SMALLEST_SCALED_GAP:
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2.0 * (k * scaled_gap) ** 2) for k in range(1, _TERMS)]
    return min(1.0, max(0.0, 2.0 * math.fsum(terms)))


def _log_choose(n: int, k: torch.Tensor) -> torch.Tensor:
    return math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _checked(sample: torch.Tensor) -> torch.Tensor:
    """Return the sample sorted, in float64."""
    if sample.ndim != 1 or not len(sample):
        raise DataError(f"a sample is (rows,) with at least one row, got {tuple(sample.shape)}")
    sample = sample.detach().cpu().double()
    if not sample.isfinite().all():
        raise NonFiniteError("a sample holds NaN or infinity")
    return sample.sort().values
