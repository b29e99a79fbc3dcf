"""The recommendation's rule step by step."""

from __future__ import annotations

import pytest
import torch

from laplora.decisions.recommendation import recommend

F64 = torch.float64


def losses(**below_map: tuple[float, float]) -> dict[str, torch.Tensor]:
    """Return MAP's losses of 100 rows and others, by mean and spread of their difference: its error is a tenth."""
    g = torch.Generator().manual_seed(3)
    base = torch.rand(100, generator=g, dtype=F64)
    columns = {"map": base}
    for name, (mean, spread) in below_map.items():
        noise = torch.randn(100, generator=g, dtype=F64)
        noise = (noise - noise.mean()) / noise.std()
        columns[name] = base + mean + spread * noise
    return columns


def outlier(mean: float, size: float) -> dict[str, torch.Tensor]:
    """Return MAP's losses and Laplace's, which differ by a mean and by one row more."""
    columns = losses(laplace=(mean, 0.0))
    columns["laplace"][7] += size
    return columns


BEST, NOISE = "the lowest of all", "none that is lower leads beyond noise"
VARIANCE = "within 0.25 standard errors of temperature, and it has a variance"


@pytest.mark.parametrize(
    ("columns", "chosen", "why"),
    [
        # One is left out above MAP beyond noise. The standard error is 0.01, and 5 / 2n is 0.025.
        (losses(temperature=(0.009, 0.1)), "temperature", NOISE),
        (losses(temperature=(0.011, 0.1), laplace=(0.011, 0.1)), "map", BEST),
        (losses(temperature=(0.011, 0.1), laplace=(0.009, 0.1)), "laplace", NOISE),
        # No noise excuses 2.5 nats over the rows: one outlier makes mean and standard error alike.
        (outlier(-0.0001, 2.6), "map", BEST),
        (outlier(-0.0001, 2.4), "laplace", NOISE),
        (losses(temperature=(0.026, 1.0)), "map", BEST),
        # Losses that are the same, row by row, have no noise and no lead.
        (losses(laplace=(0.0, 0.0)), "map", BEST),
        # Laplace that is MAP to rounding, or to 0.4 nats over the rows: nothing is preferred for a variance of nothing.
        (losses(laplace=(-1e-9, 1e-9)), "map", NOISE),
        (losses(laplace=(-0.004, 0.0)), "map", NOISE),
        (losses(laplace=(-0.006, 0.0)), "laplace", BEST),
        (losses(temperature=(-0.0002, 0.1), laplace=(-1e-9, 1e-9)), "temperature", BEST),
        # Laplace is preferred where it is 0.15 standard errors behind, not where it is 0.5; or ahead, within noise.
        (losses(temperature=(-0.300, 0.0), laplace=(-0.297, 0.2)), "laplace", VARIANCE),
        (losses(temperature=(-0.30, 0.0), laplace=(-0.29, 0.2)), "temperature", BEST),
        (losses(temperature=(-0.30, 0.0), laplace=(-0.31, 0.2)), "laplace", BEST),
        # Of two the better one, however little better.
        (losses(temperature=(-0.300, 0.0), conditioned=(-0.301, 0.2)), "conditioned", BEST),
        (losses(laplace=(-0.301, 0.0), laplace_conditioned=(-0.300, 0.2)), "laplace", BEST),
    ],
)
def test_the_rule(columns: dict[str, torch.Tensor], chosen: str, why: str) -> None:
    got = recommend(columns)
    assert (got.predictive, got.reason.split("; ")[1]) == (chosen, why)
    assert got.reason.startswith(f"{chosen} has an NLL of ")


def test_a_served_posterior_without_variance_is_not_preferred_whatever_the_folds_had() -> None:
    columns = losses(temperature=(-0.300, 0.0), laplace=(-0.297, 0.2))
    assert recommend(columns).predictive == "laplace"
    got = recommend(columns, has_variance=False)
    assert got.predictive == "temperature"
    assert got.reason.endswith("; laplace answers as map does, so nothing of the posterior is a candidate")


@pytest.mark.parametrize(
    ("accepting", "chosen"),
    [
        (("map", "laplace", "temperature", "conditioned"), "conditioned"),
        (("map", "laplace", "temperature"), "temperature"),
        (("map", "laplace"), "laplace"),
        # MAP is worse and no candidate: it answers where it alone can be accepted. Where none can, the rule stands.
        (("map",), "map"),
        (("worse",), "conditioned"),
        ((), "conditioned"),
    ],
)
def test_what_accepts_something_is_preferred(accepting: tuple[str, ...], chosen: str) -> None:
    columns = losses(conditioned=(-0.3, 0.1), temperature=(-0.2, 0.1), laplace=(-0.1, 0.1), worse=(0.1, 0.1))
    got = recommend(columns, accepting=accepting)
    assert got.predictive == chosen
    assert ("preferred to conditioned, which accepts nothing" in got.reason) == (chosen != "conditioned")


def test_the_table_has_every_figure() -> None:
    columns = losses(temperature=(-0.2, 0.3), laplace=(-0.1, 1.0))
    got = recommend(columns)
    assert got.table["map"]["difference_to_map"] == got.table["map"]["low"] == got.table["map"]["high"] == 0.0
    for name, entry in got.table.items():
        assert entry["nll"] == pytest.approx(float(columns[name].mean()))
        assert entry["difference_to_map"] == pytest.approx(float((columns[name] - columns["map"]).mean()))
    # A mean of 100 differences of spread 0.3 is +-1.96 * 0.03; 2000 resamples give the ends to some 5 % of that.
    ends = [got.table["temperature"][end] for end in ("low", "high")]
    assert ends == pytest.approx([-0.2 - 0.0588, -0.2 + 0.0588], abs=0.008)
    assert recommend(columns) == got
    assert f"{got.table[got.predictive]['difference_to_map']:+.3f} against map" in got.reason
