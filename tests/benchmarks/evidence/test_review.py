"""Review scores find what only they can see, and their gain over the entropy is a paired one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import generator

from benchmarks.evidence.methods import review
from benchmarks.evidence.methods.review import Score, Signs
from benchmarks.evidence.results import Results
from benchmarks.evidence.reviewed import prr, reviewed
from benchmarks.evidence.scores import METRICS, RESAMPLES
from laplora.metrics.ranking import error_auroc


def signs_of(rows: int, seed: int) -> tuple[Signs, torch.Tensor]:
    """Return rows whose mistakes lie far from the training rows, whatever their entropy."""
    draw = generator(seed)
    probs = torch.randn(rows, 3, generator=draw, dtype=torch.float64).softmax(1)
    strange = torch.randn(rows, generator=draw, dtype=torch.float64)
    layers = strange[:, None] + 0.1 * torch.randn(rows, 4, generator=draw, dtype=torch.float64)
    moved = torch.rand(rows, generator=draw, dtype=torch.float64)
    return Signs(probs, moved, layers, layers), strange > 0.8


@pytest.mark.parametrize("score", [review.huq, review.satrmd, review.learned])
def test_a_score_finds_mistakes_that_the_entropy_does_not(score: Score) -> None:
    (rows, wrong), (test, truth) = signs_of(150, 0), signs_of(400, 1)
    by_entropy, found = (error_auroc(values, truth) for values in (test.entropy, score(rows, wrong, test)))
    assert by_entropy is not None
    assert found is not None
    assert by_entropy < 0.6 < 0.9 < found
    if score is review.learned:  # without a mistake to learn from
        assert torch.equal(score(rows, torch.zeros_like(wrong), test), test.entropy)


def test_the_rejection_ratio_is_1_for_the_perfect_score_and_0_for_a_random_one() -> None:
    # The area of the perfect score's curve by sums: nothing is wrong until only mistakes are left out no more.
    coverages = (torch.arange(100_000).double() + 0.5) / 100_000
    perfect = float((1 - 0.8 / coverages).clamp_min(0).mean())
    assert prr([{"accuracy": 0.8, "aurc": perfect}]) == pytest.approx(1, abs=1e-3)
    assert prr([{"accuracy": 0.8, "aurc": 0.2}]) == pytest.approx(0)
    assert math.isnan(prr([{"accuracy": 1.0, "aurc": 0.0}]))


def test_a_gain_is_over_the_entropy_of_the_same_answers() -> None:
    place = {"task": "trec", "budget": 450, "style": "long", "accuracy": 0.8}
    aurc = {"temperature": 0.2, "conditioned": 0.1, "conditioned_huq": 0.08}
    records: list[dict[str, Any]] = [
        {**place, "method": name, "seed": seed, "draw": draw, "aurc": value + seed / 1e2 + draw / 1e3}
        for name, value in aurc.items()
        for seed in range(3)
        for draw in range(5)
    ]
    same = torch.randn(len(METRICS), RESAMPLES, generator=generator(4))
    resampled = {"conditioned": same - 0.1, "conditioned_huq": same - 0.12}
    (found,) = reviewed(Results(records, {("trec", 450, seed, "long"): resampled for seed in range(3)}))
    assert (found.method, found.seeds) == ("conditioned_huq", 3)
    assert found.difference.mean == pytest.approx(-0.02)
    assert found.difference.verdict == "win"  # rows, trainings and draws move both alike
    assert found.prr > found.entropy
