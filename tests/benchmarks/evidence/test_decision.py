"""The decision: intervals that hold their level, verdicts, and figures of several machines put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import generator

from benchmarks.evidence.decision import Difference, cells, pooled, reported, tally
from benchmarks.evidence.page import render
from benchmarks.evidence.plan import Training, Unit
from benchmarks.evidence.recovered import recovered
from benchmarks.evidence.results import publish, read_results
from benchmarks.evidence.scores import METRICS, RESAMPLES, Scored, has_skill, resampled_rows
from benchmarks.evidence.tables import recovered_shares, worth

SEEDS, DRAWS, ROWS = 3, 5, 120


@pytest.mark.parametrize(("seeds", "low", "high"), [(SEEDS, 0.91, 0.995), (5, 0.945, 1)])
@pytest.mark.parametrize(("between_seeds", "between_draws"), [(0.02, 0.02), (0.1, 0.1), (1.0, 0.0), (0.0, 1.0)])
def test_the_interval_covers_the_truth_at_about_its_level(
    between_seeds: float, between_draws: float, seeds: int, low: float, high: float
) -> None:
    """Rows, seeds and draws all vary, in different shares: the truth is their grand mean, 0."""
    covered, tries = 0, 300
    for attempt in range(tries):
        draw = generator(attempt)
        of_row, of_seed = torch.randn(ROWS, generator=draw), torch.randn(seeds, 1, generator=draw)
        of_draw = torch.randn(seeds, DRAWS, generator=draw)
        values = of_row.mean() + between_seeds * of_seed + between_draws * of_draw
        index = torch.randint(ROWS, (RESAMPLES, ROWS), generator=draw)
        resampled = of_row[index].mean(1)
        found = pooled(range(seeds), list(values), [resampled] * seeds)
        covered += found.low <= 0 <= found.high
    nothing = [torch.zeros(RESAMPLES)] * 4
    styles = pooled([0, 0, 1, 1], [torch.full((DRAWS,), value) for value in (1.0, -1.0, 1.0, -1.0)], nothing)
    assert (styles.mean, styles.low, styles.high) == (0, 0, 0), "styles of a seed are one seed"
    # Of 300 tries at 95 %, and of five seeds 97.5 %: 4 and 3 points are three standard deviations. It may cover more
    # where both parts count.
    assert low <= covered / tries <= high


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-2.0, -1.0, "win"), (-1.0, 1.0, "tie"), (1.0, 2.0, "loss"), (-1.0, 0.0, "tie")]
)
def test_a_verdict_needs_an_interval_without_0(low: float, high: float, verdict: str) -> None:
    assert Difference((low + high) / 2, low, high).verdict == verdict
    assert Difference((low + high) / 2, low, high, seeds=1).verdict == "open"


def test_skill_is_more_than_the_most_frequent_label() -> None:
    labels = torch.tensor([0] * 60 + [1] * 40)
    rows = resampled_rows("trec", 100)
    assert torch.equal(rows, resampled_rows("trec", 100)), "alike everywhere"
    right = torch.nn.functional.one_hot(labels, 2).double()
    assert has_skill(right, labels, rows)
    assert not has_skill(torch.tensor([0.7, 0.3]).double().expand(100, 2), labels, rows)


def scored(task: str, seed: int, gains: dict[str, float], *, skill: bool = True, budget: int = 450) -> Scored:
    """Return figures where each method's NLL and AURC lie below temperature scaling's by its gain."""
    unit = Unit(Training(task, budget, seed), "long")

    def record(method: str, draw: int, gain: float) -> dict[str, Any]:
        metrics = {
            "nll": 0.5 - gain + draw / 1e6,
            "ece": 0.02,
            "ece_calibrated": 0.03,
            "accuracy": 0.8,
            "auroc": 0.7,
            "aurc": 0.1 - gain,
        }
        place = {"task": task, "base": "tiny", "skill": skill, "budget": budget, "method": method, "seed": seed}
        return place | {"draw": draw, "style": "long"} | metrics | {"forwards": 1.0}

    methods = {"temperature": 0.0} | gains
    records = [record(name, draw, gain) for name, gain in methods.items() for draw in range(DRAWS)]
    noise = 1e-3 * torch.randn(len(METRICS), RESAMPLES, generator=generator(seed))
    return Scored(unit, records, {name: noise - gain for name, gain in gains.items()})


def test_figures_of_two_machines_are_put_together(tmp_path: Path) -> None:
    paths = tmp_path / "evidence.json", tmp_path / "resampled.safetensors"
    publish([scored("trec", 0, {"map": 0.0}), scored("irony", 0, {"map": 0.0})], *paths)
    publish([scored("trec", 1, {"map": 0.0, "laplace": 0.1})], *paths)
    again = publish([scored("irony", 0, {"map": 0.2})], *paths)
    assert [(r["task"], r["seed"]) for r in again.records if r["draw"] == 0 and r["method"] == "map"] == [
        ("irony", 0),
        ("trec", 0),
        ("trec", 1),
    ]
    found = read_results(*paths)
    assert found.records == again.records
    assert set(found.resampled["trec", 450, 1, "long"]) == {"map", "laplace"}
    assert float(found.resampled["irony", 450, 0, "long"]["map"].float().mean()) == pytest.approx(-0.2, abs=1e-3)


def test_tallies_are_of_the_reporting_half_with_skill(tmp_path: Path) -> None:
    units = [scored(task, seed, {"map": -0.1, "laplace": 0.1}) for task in ("trec", "irony") for seed in range(SEEDS)]
    units += [scored("sst2", seed, {"laplace": 0.1}) for seed in range(SEEDS)]
    units += [scored("domains", seed, {"laplace": 0.1}, skill=False) for seed in range(SEEDS)]
    results = publish(units, tmp_path / "a.json", tmp_path / "b.safetensors")
    every = cells(results)
    chosen = list(reported(every, 450))
    assert set(tally(chosen, "laplace", "nll").wins) == {"trec", "irony"}
    assert set(tally(chosen, "map", "aurc").losses) == {"trec", "irony"}
    alone = cells(publish([scored("fields", 0, {"laplace": 0.1})], tmp_path / "a.json", tmp_path / "b.safetensors"))
    assert tally(reported(alone, 450), "laplace", "nll").open == ("fields",)
    page = render(results)
    assert "| sst2, 450 |" in page.partition("## The developing half")[2].partition("\n## ")[0]
    assert "| domains, 450 |" in page.partition("## Tasks without skill")[2].partition("\n## ")[0]
    assert "| domains, 450 (no skill) | 0.500, 80.0 % | 0.400, 80.0 % |" in worth(every, "laplace")


def test_the_share_of_retraining_is_of_the_draw_that_was_trained_on() -> None:
    gains = {"retrained": 0.2, "conditioned": 0.15}
    records = [r for seed in range(2) for r in scored("trec", seed, gains).records]
    for record in records:
        record["nll"] += 5.0 * record["draw"]  # of other draws nothing counts
    (found,) = recovered([*records, *scored("irony", 0, {"conditioned": 0.1}).records])
    assert (found.task, found.budget, found.seeds) == ("trec", 450, 2)
    assert found.gain("conditioned") == pytest.approx(0.15)
    assert "| trec, 450 | 2 | 0.500 | +0.200 | +0.150 (75%) | - |" in recovered_shares([found])
