"""Cross-fitting, the recommendation's rule step by step, and its promise on synthetic models."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.decisions.recommendation import Recommendation, recommend
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
    got = recommend(losses(temperature=(0.011, 0.1)), ["map", "temperature"])
    assert got.reason.startswith("map: NLL ")
    assert got.reason.endswith("; the lowest")


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
    assert got.reason.endswith("within one standard error of ensemble, and cheaper")
    # What is cheap is the order's business, not the names'.
    assert recommend(columns, ["map", "ensemble", "temperature"]).predictive == "ensemble"
    assert choose(losses(temperature=(-0.30, 0.0), ensemble=(-0.35, 0.2))) == "ensemble"


def test_laplace_is_preferred_only_where_nothing_speaks_against_it() -> None:
    got = recommend(losses(temperature=(-0.300, 0.0), laplace=(-0.297, 0.2)), ["map", "temperature", "laplace"])
    assert got.predictive == "laplace"  # 0.15 standard errors behind
    assert got.reason.endswith("within 0.25 standard errors of temperature, and it has a variance")
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


NAMES = ("map", "temperature", "laplace", "ensemble", "mc_dropout")


def check_reason(columns: dict[str, torch.Tensor], got: Recommendation) -> str:
    """Assert that every claim of a reason holds for the losses; return the last part, without figures."""
    means = {name: float(column.mean()) for name, column in columns.items()}
    mean = means[got.predictive]

    def in_errors(name: str, other: str) -> float:
        difference = columns[name] - columns[other]
        error = float(difference.std()) / math.sqrt(len(difference))
        mean = float(difference.mean())
        return mean / error if error else math.copysign(math.inf, mean) if mean else 0.0

    head, _, why = got.reason.partition("; ")
    name, nll = re.match(r"(\w+): NLL (\S+) on \d+ calibration rows", head).groups()  # type: ignore[union-attr]
    assert name == got.predictive
    assert nll == f"{mean:.3f}"
    stated = re.search(r", ([+-]\S+) against map \(95 % ([+-]\S+) to ([+-]\S+)\)$", head)
    if stated:
        difference, low, high = map(float, stated.groups())
        assert difference == pytest.approx(mean - means["map"], abs=0.00051)
        assert (difference > 0) == (mean > means["map"])
        assert low <= difference <= high
    elif name != "map":
        assert ", no different from map to 0.001 (95 % " in head
        assert abs(mean - means["map"]) < 0.0005
    lower = {n for n in means if means[n] < mean}
    if why == "the lowest":
        assert all(mean < other for n, other in means.items() if n != name)
    elif why == "no other is lower":
        assert not lower
        assert list(means.values()).count(mean) > 1
    elif near := re.fullmatch(r"within (one|0\.25) standard errors? of (\w+), and (cheaper|it has a variance)", why):
        assert means[near[2]] <= mean
        assert abs(in_errors(name, near[2])) <= {"one": 1.0, "0.25": 0.25}[near[1]]
        assert near[3] == "it has a variance" if name == "laplace" and near[1] == "0.25" else near[3] == "cheaper"
        if near[3] == "cheaper":
            assert list(columns).index(name) < list(columns).index(near[2])
    else:
        claims = re.findall(r"(\w+) is lower by (\S+|less than 0\.001), (.+?)(?=, \w+ is lower by|$)", why)
        assert {n for n, _, _ in claims} == lower
        for n, by, reason in claims:
            assert (
                mean - means[n] < 0.0005 if "less" in by else float(by) == pytest.approx(mean - means[n], abs=0.00051)
            )
            if reason == "within one standard error":
                assert n == "map"
                assert 0 < in_errors(name, "map") < 1
                assert mean - means["map"] <= 2.5 / len(columns[name])
            elif reason == "but above map by at least one standard error":
                assert in_errors(n, "map") >= 1
            else:
                assert reason == "but not below map by more than half a standard error"
                assert means[n] == means["map"] or in_errors(n, "map") >= -0.5
                assert n not in ("temperature", "laplace") or means[n] == means["map"]
    return re.sub(r"[\d.]+", "#", why)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, len(NAMES)),
    shifts=st.lists(st.sampled_from([-0.1, -0.03, -0.004, -0.0002, 0.0, 0.0002, 0.004, 0.03]), min_size=5, max_size=5),
    spreads=st.lists(st.sampled_from([0.0, 0.0, 0.003, 0.03, 0.3]), min_size=5, max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_whatever_the_losses_every_claim_of_the_reason_holds(
    seed: int, count: int, shifts: list[float], spreads: list[float]
) -> None:
    g = torch.Generator().manual_seed(seed)
    base = torch.rand(60, generator=g, dtype=F64)
    columns = {"map": base}
    for name, shift, spread in zip(NAMES[1:count], shifts, spreads, strict=False):
        columns[name] = base + shift + spread * torch.randn(60, generator=g, dtype=F64)
    check_reason(columns, recommend(columns, list(columns)))


def test_every_branch_of_the_reason() -> None:
    base = losses()["map"]
    noise = losses(ensemble=(0.0, 1.0))["ensemble"] - base
    cases = {
        "the lowest": losses(temperature=(0.011, 0.1)),
        "no other is lower": {"map": base, "laplace": base.clone()},
        "within # standard errors of temperature, and it has a variance": losses(
            temperature=(-0.300, 0.0), laplace=(-0.297, 0.2)
        ),
        "within one standard error of ensemble, and cheaper": losses(temperature=(-0.30, 0.0), ensemble=(-0.31, 0.2)),
        # What was printed as the lowest where MAP was lower.
        "map is lower by #, within one standard error": losses(temperature=(0.002, 0.1)),
        "ensemble is lower by #, but not below map by more than half a standard error": {
            "map": base,
            "ensemble": base - 0.02 + noise,
        },
        "map is lower by #, within one standard error, "
        "laplace is lower by #, but above map by at least one standard error": {
            "map": base,
            "temperature": base + 0.02 + noise,
            "laplace": base + 0.01 + 0.01 * noise,
        },
        # An ensemble above MAP within noise is not "above by at least one standard error".
        "map is lower by #, within one standard error, "
        "ensemble is lower by #, but not below map by more than half a standard error": {
            "map": base,
            "temperature": base + 0.02 + noise,
            "ensemble": base + 0.01 + noise,
        },
    }
    for want, columns in cases.items():
        assert check_reason(columns, recommend(columns, list(columns))) == want


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
