"""Limits of chance and two-sample tests: against scipy, and against models that are calibrated by construction."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from laplora.metrics import noise
from laplora.metrics.drift import kolmogorov_smirnov
from laplora.metrics.noise import calibrated_ece, ece_limit, highest_risk, lowest_coverage
from laplora.metrics.scores import ece, evaluate_probs


def calibrated(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rows, 2) probabilities and labels that were drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(rows, dtype=torch.float64, generator=generator)
    labels = (torch.rand(rows, dtype=torch.float64, generator=generator) >= first).long()
    return torch.stack([first, 1 - first], 1), labels


def test_a_calibrated_model_has_the_mean_and_passes_the_limit_as_often_as_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bias is real: at 200 rows a model with no miscalibration at all measures an ECE of 0.07."""
    monkeypatch.setattr(noise, "SIMULATIONS", 400)
    measured, means, over = [], [], 0
    for seed in range(400):
        probs, labels = calibrated(200, seed)
        limits = calibrated_ece(probs.amax(1), chance=0.05)
        measured.append(ece(probs, labels))
        means.append(limits.mean)
        over += measured[-1] > limits.limit
    assert sum(means) / 400 == pytest.approx(0.07, abs=0.01)
    # Standard error of 400 measured values: below 0.001.
    assert sum(measured) / 400 == pytest.approx(sum(means) / 400, abs=0.004)
    # 20 of 400 expected; 0.01 % of draws are outside of 5 to 39.
    assert stats.binom.ppf(5e-5, 400, 0.05) <= over <= stats.binom.ppf(1 - 5e-5, 400, 0.05)


def test_a_diagrams_bins_have_the_limit_of_their_rows() -> None:
    """But for the confidences' spread within a bin, which makes it 1 % too large, and 4,000 draws of either."""
    probs, labels = calibrated(600, 2)  # more numbers than are drawn at a time
    found = ece_limit(evaluate_probs(probs, labels).to_json()["reliability"])
    assert found == pytest.approx(calibrated_ece(probs.amax(1), chance=0.025).limit, rel=0.03)
    assert calibrated_ece(probs.amax(1)) == calibrated_ece(probs.amax(1))
    assert ece_limit([{"count": 3, "confidence": 1.0}, {"count": 0, "confidence": None}]) == 0


@pytest.mark.parametrize(("rows", "chance"), [(1, 0.001), (1000, 0.05)])
def test_coverage_is_beta_binomial(rows: int, chance: float) -> None:
    """150 calibration rows at 0.9: k is 136."""
    limit = round(lowest_coverage(0.9, rows, 150, chance=chance) * rows)
    cdf = stats.betabinom(rows, 136, 15).cdf
    assert cdf(limit - 1) <= chance < cdf(limit)
    assert lowest_coverage(0.9, 100, 9) < lowest_coverage(0.9, 100, 8) == 1.0  # too few calibration rows


@pytest.mark.parametrize(("rows", "risk"), [(1, 0.5), (1000, 0.05)])
def test_risk_is_binomial(rows: int, risk: float) -> None:
    limit = round(highest_risk(risk, rows) * rows)
    assert stats.binom(rows, risk).sf(limit) <= 0.001
    assert limit == 0 or stats.binom(rows, risk).sf(limit - 1) > 0.001


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
