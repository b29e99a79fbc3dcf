"""Temperature scaling against scipy's minimiser, and its prior."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import optimize, stats

from laplora.decisions.temperature import TEMPERATURE_BOUNDS, fit_temperature, temperature_probs
from laplora.metrics.scores import nll

F64 = torch.float64


def random_split(rows: int, classes: int, sharpness: float, seed: int) -> tuple[torch.Tensor, ...]:
    """Return logits that are ``sharpness`` times the truth, labels from the truth, and a mask of prefixes."""
    g = torch.Generator().manual_seed(seed)
    truth = 2 * torch.randn(rows, classes, generator=g, dtype=F64)
    mask = torch.arange(classes) < torch.randint(2, classes + 1, (rows, 1), generator=g)
    probs = torch.softmax(truth.masked_fill(~mask, -math.inf), 1)
    labels = torch.multinomial(probs, 1, generator=g)[:, 0]
    return sharpness * truth + 50 * torch.randn(rows, 1, generator=g, dtype=F64), labels, mask


@pytest.mark.parametrize(("classes", "sharpness"), [(2, 0.3), (5, 4.0)])
def test_temperature_is_scipys_minimum_of_the_penalised_nll(classes: int, sharpness: float) -> None:
    logits, labels, mask = random_split(400, classes, sharpness, seed=classes)
    got = fit_temperature(logits, labels, mask)

    def objective(log_temperature: float) -> float:
        # The prior of one row is Gamma(2, 1), of 1 / T.
        penalty = -stats.gamma(2).logpdf(math.exp(-log_temperature)) / len(labels)
        return nll(temperature_probs(logits, math.exp(log_temperature), mask), labels) + penalty

    best = optimize.minimize_scalar(objective, bounds=(-3, 4), method="bounded", options={"xatol": 1e-9})
    # A minimiser that sees values only resolves the place to the square root of rounding, about 1e-7.
    assert math.log(got) == pytest.approx(best.x, abs=1e-6)
    assert objective(math.log(got)) <= best.fun + 1e-14
    # The labels came from the logits divided by the sharpness; 400 rows fix T to about 10 %.
    assert got == pytest.approx(sharpness, rel=0.4)


def test_temperature_ignores_impossible_logits_and_common_shifts() -> None:
    logits, labels, mask = random_split(100, 4, 2.0, seed=3)
    got = fit_temperature(logits, labels, mask)
    poisoned = logits.masked_fill(~mask, math.nan)
    assert fit_temperature(poisoned, labels, mask) == got
    # The shift costs rounding of 1e-13 in each logit.
    assert fit_temperature(logits + 1000, labels, mask) == pytest.approx(got, rel=1e-10)
    want = torch.softmax((logits / got).masked_fill(~mask, -math.inf), 1)
    assert torch.equal(temperature_probs(poisoned, got, mask), want)


def test_temperature_meets_its_bounds_only_where_the_rows_outweigh_the_prior() -> None:
    mask = torch.ones(3, 2, dtype=torch.bool)
    logits = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    right = torch.tensor([0, 0, 1])
    assert 0.5 < fit_temperature(logits, right, mask) < 1 < fit_temperature(logits, 1 - right, mask) < 10
    # Huge logits do not overflow.
    assert fit_temperature(1e6 * logits, 1 - right, mask) == TEMPERATURE_BOUNDS[1]
    # Ten thousand rows that are all right with hardly any confidence are no accident.
    many = (0.05 * logits.repeat(10_000, 1), right.repeat(10_000), mask.repeat(10_000, 1))
    assert fit_temperature(*many) == TEMPERATURE_BOUNDS[0]
