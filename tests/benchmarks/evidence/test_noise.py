"""Intervals by scipy, and how often they are right in simulated studies."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.evidence.noise import above, has_skill, interval, mean, worse


def study(draw: np.random.Generator, true: float, of_seeds: float, of_rows: float) -> list[dict[str, Any]]:
    """Return the records of one method: three seeds of five draws, which share their 500 test rows."""
    rows = draw.normal(true, of_rows, 500)
    records = []
    for seed in range(3):
        shift = draw.normal(0, of_seeds)
        for number in range(5):
            pair = [rows.mean() + shift + draw.normal(0, of_seeds / 3), rows.std(ddof=1) / 500**0.5]
            records.append({"seed": seed, "draw": number, "vs_temperature": pair})
    return records


@pytest.mark.parametrize(("of_seeds", "of_rows", "most"), [(0.01, 0.0, 0.97), (0.0, 0.3, 0.97), (0.01, 0.3, 1.0)])
def test_equal_methods_are_tied_in_95_of_100_studies(of_seeds: float, of_rows: float, most: float) -> None:
    draw = np.random.default_rng(0)
    verdicts = [interval(study(draw, 0.0, of_seeds, of_rows)).verdict for _ in range(600)]
    assert 0.93 <= verdicts.count("tied") / 600 <= most  # two standard errors are 0.018
    assert min(verdicts.count("better"), verdicts.count("worse")) > 0


def test_a_clear_difference_has_a_verdict_and_one_seed_has_none() -> None:
    draw = np.random.default_rng(1)
    for true, verdict in ((-0.2, "better"), (0.2, "worse")):
        records = study(draw, true, 0.01, 0.3)
        assert (interval(records).verdict, interval(records[:5]).verdict) == (verdict, None)
    assert interval([{"seed": 0, "vs_temperature": None}, {"seed": 1}]) is None


def test_each_part_is_scipys_interval_and_both_are_joined() -> None:
    by_seed = {0: [0.10, 0.20, 0.30], 1: [0.05], 2: [-0.10, 0.00]}
    records = [{"seed": seed, "vs_temperature": [one, 0.03]} for seed, of in by_seed.items() for one in of]
    means = [fmean(of) for of in by_seed.values()]  # a seed with fewer draws counts as much
    of_seeds = stats.t.interval(0.95, 2, fmean(means), stats.sem(means))
    of_rows = stats.t.interval(0.95, 499, 0, 0.03)
    found = interval(records)
    assert found.mean == pytest.approx(fmean(means)) == pytest.approx(mean(records, lambda r: r["vs_temperature"][0]))
    assert found.half == pytest.approx(np.hypot((of_seeds[1] - of_seeds[0]) / 2, of_rows[1]))


def test_skill_is_told_by_map_or_the_most_accurate_rival() -> None:
    def method(accuracy: float, lead: float, seeds: int = 3) -> list[dict[str, Any]]:
        return [{"seed": seed, "accuracy": accuracy, "vs_frequent": [lead, 0.02]} for seed in range(seeds)]

    assert has_skill({"map": method(0.6, 0.05)})
    assert not has_skill({"map": method(0.6, 0.03), "pool": method(0.9, 0.3)})
    assert has_skill({"map": method(0.6, 0.03), "words": method(0.7, 0.2)})
    # The most accurate rival is judged, whatever another one's lead is.
    assert not has_skill({"words": method(0.7, 0.01), "setfit": method(0.6, 0.2)})
    assert not has_skill({"map": method(0.6, 0.05, seeds=1)})
    assert not has_skill({})


def test_chances_are_shares_of_draws() -> None:
    pairs, errors = [[0.1, 1], [-0.1, 1], [0.2, 1], None], [0.07, None, 0.06, 0.05]
    draws = zip(pairs, errors, strict=True)
    records = [{"seed": 0, "vs_temperature": pair, "accepted_error_10": error} for pair, error in draws]
    assert mean(records, worse) == pytest.approx(2 / 3)
    assert mean(records, above(0.06, 0.10)) == 0.25
