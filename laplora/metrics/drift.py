"""Whether recent values are still distributed as earlier ones: two-sample tests on one number per row.

Rows count as independent: repeated inputs make the p-values too small. Empty samples and other shapes raise DataError,
NaN and infinity NonFiniteError.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats

from laplora.metrics.checks import checked_column

#: Rows of the larger sample up to which the p-value is exact. It takes 5 ms there; the asymptotic one is as good above.
EXACT_ROWS = 2_000


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
    """Return the largest gap between the distributions of (n,) and (m,) values (two-sample Kolmogorov-Smirnov).

    The p-value is exact up to 2,000 rows a sample and asymptotic above. Equal values never make it too small.
    """
    samples = [checked_column(sample, "a sample").numpy() for sample in (reference, recent)]
    test = stats.ks_2samp(*samples, method="exact" if max(len(s) for s in samples) <= EXACT_ROWS else "asymp")
    return Drift(float(test.statistic), float(test.pvalue), len(reference), len(recent))
