"""A predictive's moments against the integral they come from, and temperatures against scipy's minimiser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from laplora.decisions.temperature import fit_temperature, temperature_penalty
from laplora.errors import ConfigError, DataError, FactorizationError, NonFiniteError
from laplora.linearised import class_probs, contrasts
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.probs import fit_predictive_temperature, predictive_probs

F64 = torch.float64
MOMENTS = ("probs", "std", "expected_entropy")


def gaussians(members: int, batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return means, positive definite covariances, and masks of different numbers of possible classes."""
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(members, batch, classes - 1, generator=g, dtype=F64)
    root = torch.randn(members, batch, classes - 1, classes - 1, generator=g, dtype=F64)
    mask = torch.arange(classes) < torch.randint(2, classes + 1, (batch, 1), generator=g)
    return means, root @ root.mT, mask


@given(
    classes=st.integers(2, 5),
    temperature=st.sampled_from([1.0, 3.0]),
    covariance=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_it_is_class_probs_or_the_posterior_predictive_to_the_last_bit(
    classes: int, temperature: float, covariance: bool, seed: int
) -> None:
    """Whatever impossible classes hold, and whichever other rows there are."""
    means, covariances, mask = gaussians(1, 5, classes, seed)
    given_ = covariances[0] if covariance else None
    got = predictive_probs(means[0].masked_fill(~mask[:, 1:], math.nan), given_, mask, temperature)
    prefix = means[0].masked_fill(~mask[:, 1:], 0)
    if covariance:
        want = posterior_predictive(prefix / temperature, covariances[0] / temperature**2, mask)
        assert all(torch.equal(getattr(got, name), getattr(want, name)) for name in MOMENTS)
    else:
        assert torch.equal(got.probs, class_probs(prefix / temperature @ contrasts(classes).T, mask))
        assert (got.std == 0).all()
        torch.testing.assert_close(got.expected_entropy, torch.special.entr(got.probs).sum(1), atol=0, rtol=0)
    alone = predictive_probs(means[0, :1], None if given_ is None else given_[:1], mask[:1], temperature)
    torch.testing.assert_close(alone.probs, got.probs[:1], atol=1e-14, rtol=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_temperature_of_a_mixture_is_scipys_minimum(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    truth = 1.5 * torch.randn(150, classes - 1, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(truth @ contrasts(classes).T, 1), 1, generator=g)[:, 0]
    means = 4 * truth + torch.randn(2, *truth.shape, generator=g, dtype=F64)
    got = fit_predictive_temperature(means, labels, torch.ones(150, classes, dtype=torch.bool))

    def objective(log_temperature: float) -> float:
        probs = (means @ contrasts(classes).T / math.exp(log_temperature)).softmax(2).mean(0)
        return -float(probs.gather(1, labels[:, None]).log().mean()) + temperature_penalty(log_temperature, 150)

    best = optimize.minimize_scalar(objective, bounds=(-2, 4), method="bounded", options={"xatol": 1e-6})
    # Values alone resolve the place of a minimum to the square root of their rounding; the search stops at 1e-6.
    assert math.log(got) == pytest.approx(best.x, abs=1e-5)
    assert 2 < got < 8  # the means are four times the truth


def test_the_temperature_of_one_point_is_temperature_scaling() -> None:
    means, _, mask = gaussians(1, 80, 4, seed=1)
    labels = (torch.arange(80) % 3 == 0).long()
    logits = means[0].masked_fill(~mask[:, 1:], 0) @ contrasts(4).T
    got = fit_predictive_temperature(means, labels, mask)
    assert got == fit_temperature(logits, labels, mask)
    # The same order twice goes the other way, to the search's tolerance.
    assert fit_predictive_temperature(means.repeat(2, 1, 1), labels, mask) == pytest.approx(got, rel=1e-5)


def test_refusals() -> None:
    means, covariances, mask = gaussians(2, 3, 3, seed=0)
    (mean, _), (covariance, _) = means, covariances
    refused: list[tuple[Any, type[Exception], str]] = [
        ((means, None, mask), DataError, r"means must be \(orders, 3, 2\) with at least one order"),
        ((mean, covariance[:2], mask), DataError, "must be"),
        ((mean, None, mask.long()), DataError, "bool"),
        ((mean * math.nan, None, mask), NonFiniteError, "NaN"),
        ((mean, -covariance, mask), FactorizationError, "positive semi-definite"),
        *(((mean, None, mask, bad), ConfigError, "positive") for bad in (0.0, math.inf, math.nan)),
    ]
    for given_, error, message in refused:
        with pytest.raises(error, match=message):
            predictive_probs(*given_)
    with pytest.raises(DataError, match="possible classes"):
        fit_predictive_temperature(means, torch.tensor([5, 0, 0]), mask)
    with pytest.raises(DataError, match="at least one order"):
        fit_predictive_temperature(means[:0], torch.tensor([1, 0, 0]), mask)
