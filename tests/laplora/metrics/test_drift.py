"""Two-sample tests against scipy and by hand."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from laplora.metrics.drift import kolmogorov_smirnov


def sample(rows: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("n", "m", "method"), [(150, 1000, "exact"), (2000, 2001, "asymp")])
def test_the_p_value_is_scipys(n: int, m: int, method: str) -> None:
    reference, recent = sample(n, 1), sample(m, 2, shift=0.1)
    drift = kolmogorov_smirnov(reference, recent)
    expected = stats.ks_2samp(reference.numpy(), recent.numpy(), method=method)
    assert drift.gap == pytest.approx(expected.statistic, abs=1e-12)
    assert drift.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (drift.reference_rows, drift.recent_rows) == (n, m)
