"""Two-sample tests: what they find, and how often they are wrong."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from laplora.errors import ConfigError
from laplora.metrics.drift import gap_above, kolmogorov_smirnov


def sample(rows: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("n", "m"), [(150, 1000), (150, 60), (1000, 1000), (400, 51)])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 1.0])
def test_the_p_value_is_near_the_exact_one(n: int, m: int, shift: float) -> None:
    reference, recent = sample(n, 1), sample(m, 2, shift)
    drift = kolmogorov_smirnov(reference, recent)
    expected = stats.ks_2samp(reference.numpy(), recent.numpy(), method="exact")
    assert drift.gap == pytest.approx(expected.statistic, abs=1e-12)
    assert drift.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert (drift.reference_rows, drift.recent_rows) == (n, m)


def test_one_value_everywhere_is_no_drift_and_two_values_are_all_of_it() -> None:
    same = kolmogorov_smirnov(torch.zeros(40), torch.zeros(90))
    assert (same.gap, same.p_value) == (0.0, 1.0)
    apart = kolmogorov_smirnov(torch.zeros(40), torch.ones(90))
    assert apart.gap == 1.0
    assert apart.p_value < 1e-12


def test_the_p_value_of_few_rows_counts_the_orders_of_the_rows() -> None:
    """5 against 5 apart: 2 of C(10, 5) = 252 orders; 1 against 1 says nothing."""
    assert kolmogorov_smirnov(torch.zeros(1), torch.ones(1)).p_value == 1.0
    assert kolmogorov_smirnov(torch.arange(5.0), torch.arange(5.0) + 10).p_value == pytest.approx(2 / 252)


def test_equal_values_make_no_false_alarm() -> None:
    """Probabilities from bfloat16 logits repeat: the test must not read steps as drift."""
    p_values = [
        kolmogorov_smirnov(sample(150, 2 * s).round(decimals=0), sample(300, 2 * s + 1).round(decimals=0)).p_value
        for s in range(400)
    ]
    assert sum(p < 0.05 for p in p_values) <= 400 * 0.05


def test_the_gap_above_a_threshold_is_fishers_test() -> None:
    """Tea tasting: 1 of 4 and 3 of 4 above. Of C(8, 4) = 70 tables 1 + 16 are as unlikely at either end."""
    drift = gap_above(0.5, 1, 4, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert drift.gap == 0.5
    assert drift.p_value == pytest.approx(34 / 70)
    assert (drift.reference_rows, drift.recent_rows) == (4, 4)
    assert gap_above(1.6, 8, 150, sample(1000, 5)).p_value > 0.5
    assert gap_above(0.5, 8, 150, sample(80, 5)).p_value < 1e-4


@pytest.mark.parametrize(("above", "rows"), [(-1, 20), (21, 20), (0, 0)])
def test_a_reference_that_cannot_be_is_refused(above: int, rows: int) -> None:
    with pytest.raises(ConfigError, match="above"):
        gap_above(0.5, above, rows, torch.tensor([math.pi]))
