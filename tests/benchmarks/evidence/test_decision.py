"""The decision: intervals that hold their level, and verdicts."""

from __future__ import annotations

import pytest
import torch
from tiny_models import generator

from benchmarks.evidence.decision import RESAMPLES, Difference, pooled

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
