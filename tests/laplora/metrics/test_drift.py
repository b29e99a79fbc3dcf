"""Two-sample tests against scipy, and how often they are wrong."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.metrics.drift import gap_above, kolmogorov_smirnov


def sample(rows: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(("n", "m"), [(150, 1000), (150, 60), (1000, 1000), (400, 51)])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 1.0])
def test_the_gap_is_scipys_and_the_p_value_near_the_exact_one(n: int, m: int, shift: float) -> None:
    reference, recent = sample(n, 1), sample(m, 2, shift)
    found = kolmogorov_smirnov(reference, recent)
    expected = stats.ks_2samp(reference.numpy(), recent.numpy(), method="exact")
    assert found.gap == pytest.approx(expected.statistic, abs=1e-12)
    # The correction is good to a tenth of the p-value where a decision is made, and to what is negligible below.
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.15, abs=2e-5)
    assert (found.reference_rows, found.recent_rows) == (n, m)


def test_one_value_everywhere_is_no_drift_and_two_values_are_all_of_it() -> None:
    same = kolmogorov_smirnov(torch.zeros(40), torch.zeros(90))
    assert (same.gap, same.p_value) == (0.0, 1.0)
    apart = kolmogorov_smirnov(torch.zeros(40), torch.ones(90))
    assert apart.gap == 1.0
    assert apart.p_value < 1e-12


def test_equal_values_make_no_false_alarm() -> None:
    """Probabilities from bfloat16 logits repeat: the test must not read steps as drift."""
    p_values = [
        kolmogorov_smirnov(sample(150, 2 * s).round(decimals=0), sample(300, 2 * s + 1).round(decimals=0)).p_value
        for s in range(400)
    ]
    assert sum(p < 0.05 for p in p_values) <= 400 * 0.05


@pytest.mark.parametrize(
    ("above", "rows", "threshold", "m"), [(8, 150, 1.6, 1000), (8, 150, 0.5, 80), (0, 20, 3.0, 50)]
)
def test_the_gap_above_a_threshold_is_fishers_test(above: int, rows: int, threshold: float, m: int) -> None:
    recent = sample(m, 5)
    seen = int((recent > threshold).sum())
    found = gap_above(threshold, above, rows, recent)
    table = [[above, rows - above], [seen, m - seen]]
    assert found.p_value == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-6)
    assert found.gap == pytest.approx(abs(seen / m - above / rows))
    assert (found.reference_rows, found.recent_rows) == (rows, m)


def test_samples_are_checked() -> None:
    good = torch.zeros(3)
    with pytest.raises(DataError, match="at least one row"):
        kolmogorov_smirnov(good, torch.zeros(0))
    with pytest.raises(DataError, match="rows"):
        kolmogorov_smirnov(good, torch.zeros(3, 1))
    with pytest.raises(NonFiniteError, match="NaN"):
        gap_above(0.5, 1, 20, torch.tensor([float("nan")]))
    for above, rows in ((-1, 20), (21, 20), (0, 0)):
        with pytest.raises(ConfigError, match="above"):
            gap_above(0.5, above, rows, good)
