"""The recommendation's rule step by step, and its promise on synthetic models."""

from __future__ import annotations

import math

import pytest
import torch

from laplora.decisions.recommendation import recommend
from laplora.decisions.small_split import SmallCalibrationWarning
from laplora.decisions.temperature import fit_temperature, temperature_probs
from laplora.errors import ConfigError, DataError
from laplora.metrics.scores import row_nll
from laplora.predictive.cross_fitting import cross_fitted

F64 = torch.float64


def losses(**below_map: tuple[float, float]) -> dict[str, torch.Tensor]:
    """Return MAP's losses and others with a mean and a spread of their difference to it, 100 rows.

    The differences' spread is a fixed pattern of mean 0 and standard deviation 1, another one for each name, so a
    standard error is a tenth of the spread.
    """
    g = torch.Generator().manual_seed(3)
    base = torch.rand(100, generator=g, dtype=F64)
    columns = {"map": base}
    for name, (mean, spread) in below_map.items():
        noise = torch.randn(100, generator=g, dtype=F64)
        noise = (noise - noise.mean()) / noise.std()
        columns[name] = base + mean + spread * noise
    return columns


def choose(columns: dict[str, torch.Tensor]) -> str:
    return recommend(columns, list(columns)).predictive


def test_map_stays_where_what_could_have_been_map_is_above_it_beyond_noise() -> None:
    # The standard error is 0.01, and 5 / 2n is 0.025.
    assert choose(losses(temperature=(0.009, 0.1))) == "temperature"
    assert choose(losses(temperature=(0.011, 0.1), laplace=(0.011, 0.1))) == "map"
    assert choose(losses(temperature=(0.011, 0.1), laplace=(0.009, 0.1))) == "laplace"
    assert recommend(losses(temperature=(0.011, 0.1)), ["map", "temperature"]).reason.startswith("map: NLL ")


def test_one_outlier_does_not_excuse_a_predictive_that_is_far_above_map() -> None:
    base = losses()["map"]
    outlier = torch.zeros(100, dtype=F64)
    outlier[7] = 1.0
    # The mean and its standard error are both a hundredth of the outlier, whatever its size.
    assert choose({"map": base, "temperature": base + 35 * outlier - 0.001}) == "map"
    assert choose({"map": base, "laplace": base + 2.6 * outlier - 0.0001}) == "map"
    assert choose({"map": base, "laplace": base + 2.4 * outlier - 0.0001}) == "laplace"
    # No noise is large enough to excuse it.
    assert choose(losses(temperature=(0.026, 1.0))) == "map"
    assert choose(losses(temperature=(0.024, 1.0))) == "temperature"


def test_map_stays_unless_any_other_is_below_it_by_more_than_half_a_standard_error() -> None:
    assert choose(losses(ensemble=(0.0, 1.0))) == "map"
    assert choose(losses(ensemble=(-0.04, 1.0), mc_dropout=(-0.049, 1.0))) == "map"
    assert choose(losses(ensemble=(-0.06, 1.0))) == "ensemble"
    # Losses that are the same, row by row, have no noise and no lead.
    same = losses()
    assert choose(same | {"laplace": same["map"].clone()}) == "map"


def test_a_dearer_one_must_lead_by_more_than_its_noise() -> None:
    columns = losses(temperature=(-0.30, 0.0), ensemble=(-0.31, 0.2))
    # The ensemble leads by half of its standard error of 0.02.
    got = recommend(columns, ["map", "temperature", "ensemble"])
    assert got.predictive == "temperature"
    # What is cheap is the order's business, not the names'.
    assert recommend(columns, ["map", "ensemble", "temperature"]).predictive == "ensemble"
    assert choose(losses(temperature=(-0.30, 0.0), ensemble=(-0.35, 0.2))) == "ensemble"


def test_laplace_is_preferred_only_where_nothing_speaks_against_it() -> None:
    got = recommend(losses(temperature=(-0.300, 0.0), laplace=(-0.297, 0.2)), ["map", "temperature", "laplace"])
    assert got.predictive == "laplace"  # 0.15 standard errors behind
    assert choose(losses(temperature=(-0.30, 0.0), laplace=(-0.29, 0.2))) == "temperature"  # 0.5 behind
    assert choose(losses(temperature=(-0.30, 0.0), laplace=(-0.31, 0.2))) == "laplace"  # ahead, though within noise
    # It is held to the same guard against MAP as temperature scaling.
    assert choose(losses(temperature=(-0.01, 0.1), laplace=(0.011, 0.1))) == "temperature"


def test_the_table_has_every_figure() -> None:
    columns = losses(temperature=(-0.2, 0.3), laplace=(-0.1, 1.0))
    got = recommend(columns, list(columns))
    assert list(got.table) == ["map", "temperature", "laplace"]
    assert got.table["map"]["difference_to_map"] == got.table["map"]["low"] == got.table["map"]["high"] == 0.0
    for name, entry in got.table.items():
        assert entry["nll"] == pytest.approx(float(columns[name].mean()))
        assert entry["difference_to_map"] == pytest.approx(float((columns[name] - columns["map"]).mean()))
        assert entry["low"] <= entry["difference_to_map"] <= entry["high"]
    # A mean of 100 differences of spread 0.3 is +-1.96 * 0.03; 2000 resamples give the ends to some 5 % of that.
    assert got.table["temperature"]["low"] == pytest.approx(-0.2 - 0.0588, abs=0.008)
    assert got.table["temperature"]["high"] == pytest.approx(-0.2 + 0.0588, abs=0.008)
    assert recommend(columns, list(columns)) == got
    assert f"{got.table[got.predictive]['difference_to_map']:+.3f} against map" in got.reason


def test_every_branch_of_the_reason() -> None:
    base = losses()["map"]
    noise = losses(ensemble=(0.0, 1.0))["ensemble"] - base
    cases = {
        "the lowest": losses(temperature=(0.011, 0.1)),
        "within 0.25 standard errors of temperature, and it has a variance": losses(
            temperature=(-0.300, 0.0), laplace=(-0.297, 0.2)
        ),
        "within one standard error of ensemble, and cheaper": losses(temperature=(-0.30, 0.0), ensemble=(-0.31, 0.2)),
        "none that is lower leads beyond noise": {"map": base, "ensemble": base - 0.02 + noise},
    }
    for want, columns in cases.items():
        assert recommend(columns, list(columns)).reason.split("; ")[1] == want
    # MAP is lower, within noise: what is served is not called the lowest.
    assert "none that is lower" in recommend(losses(temperature=(0.002, 0.1)), ["map", "temperature"]).reason


def one_split(sharpness: float, seed: int) -> float | None:
    """Return what temperature scaling, if it is recommended on 100 rows, adds to the NLL of 2000 new ones."""
    g = torch.Generator().manual_seed(seed)
    truth = 3 * torch.randn(2100, generator=g, dtype=F64)
    labels = (torch.rand(2100, generator=g, dtype=F64) < torch.sigmoid(truth)).long()
    logits = sharpness * torch.stack([torch.zeros_like(truth), truth], 1)
    mask = torch.ones(2100, 2, dtype=torch.bool)
    calibration, new = torch.arange(100), torch.arange(100, 2100)

    def nll_at(temperature: float, rows: torch.Tensor) -> torch.Tensor:
        return row_nll(temperature_probs(logits[rows], temperature, mask[rows]), labels[rows])

    def fit(rows: torch.Tensor) -> float:
        return fit_temperature(logits[rows], labels[rows], mask[rows])

    fitted = cross_fitted(lambda rows, scored: nll_at(fit(rows), scored), 100)
    got = recommend({"map": nll_at(1.0, calibration), "temperature": fitted}, ["map", "temperature"])
    if got.predictive == "map":
        return None
    return float((nll_at(fit(calibration), new) - nll_at(1.0, new)).mean())


@pytest.mark.slow
def test_a_calibrated_model_loses_little_and_an_overconfident_one_is_not_left_alone() -> None:
    calibrated = [one_split(1.0, seed) for seed in range(60)]
    # A fitted parameter costs 1 / 2n = 0.005 nats on 100 rows, its deviation is about as much again; MAP costs none.
    assert sum(change or 0.0 for change in calibrated) / 60 <= 0.005 + 3 * 0.005 * math.sqrt(2 / 60)
    overconfident = [one_split(3.0, seed) for seed in range(60)]
    taken = [change for change in overconfident if change is not None]
    assert len(taken) >= 57
    assert max(taken) < 0
    assert sum(taken) / len(taken) < -0.1


def test_refusals() -> None:
    columns = losses(laplace=(-0.1, 1.0))
    with pytest.raises(ConfigError, match="map among them"):
        recommend({"laplace": columns["laplace"]}, ["laplace"])
    for order in (["map"], ["map", "laplace", "laplace"]):
        with pytest.raises(ConfigError, match="every predictive once"):
            recommend(columns, order)
    with pytest.raises(DataError, match="laplace must be"):
        recommend(columns | {"laplace": torch.zeros(3)}, ["map", "laplace"])
    with pytest.raises(DataError, match="two rows"):
        recommend({"map": torch.zeros(1)}, ["map"])
    with pytest.warns(SmallCalibrationWarning, match="19 calibration rows is a guess"):
        recommend({k: v[:19] for k, v in columns.items()}, ["map", "laplace"])
