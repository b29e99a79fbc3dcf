"""Mixtures over members against their one-member forms, plain sampling, and scipy's minimiser."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from laplora.decisions.temperature import TEMPERATURE_BOUNDS, fit_temperature, temperature_penalty
from laplora.errors import ConfigError, DataError, FactorizationError, NonFiniteError
from laplora.linearised import class_probs, contrasts
from laplora.metrics.scores import nll
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.kinds import (
    PREDICTIVES,
    TEMPERED,
    PredictiveSpec,
    fit_predictive_temperature,
    predictive_probs,
    predictive_spec,
)

F64 = torch.float64
MOMENTS = ("probs", "std", "expected_entropy")


def mixture(members: int, batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return means, positive definite covariances, and masks of different numbers of possible classes."""
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(members, batch, classes - 1, generator=g, dtype=F64)
    root = torch.randn(members, batch, classes - 1, classes - 1, generator=g, dtype=F64)
    mask = torch.arange(classes) < torch.randint(2, classes + 1, (batch, 1), generator=g)
    return means, root @ root.mT, mask


def test_the_names_and_what_they_average_over() -> None:
    assert {n for n in PREDICTIVES if n.endswith("temperature")} | {"conditioned"} == TEMPERED
    assert predictive_spec("laplace_temperature", 1.7) == PredictiveSpec("single", covariance=True, temperature=1.7)
    with pytest.raises(ConfigError, match="has no temperature"):
        predictive_spec("laplace", 1.7)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="positive"):
            PredictiveSpec("single", covariance=False, temperature=bad)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_one_member_is_class_probs_or_the_posterior_predictive_to_the_last_bit(
    classes: int, temperature: float
) -> None:
    means, covariances, mask = mixture(1, 6, classes, seed=3)
    point = predictive_probs(PredictiveSpec("single", False, temperature), means, None, mask)
    prefix = means[0].masked_fill(~mask[:, 1:], 0)
    assert torch.equal(point.probs, class_probs(prefix / temperature @ contrasts(classes).T, mask))
    assert (point.std == 0).all()
    torch.testing.assert_close(point.expected_entropy, torch.special.entr(point.probs).sum(1), atol=0, rtol=0)
    got = predictive_probs(PredictiveSpec("single", True, temperature), means, covariances, mask)
    want = posterior_predictive(means[0] / temperature, covariances[0] / temperature**2, mask)
    assert all(torch.equal(getattr(got, name), getattr(want, name)) for name in MOMENTS)


def test_a_mixture_is_what_sampling_from_it_gives() -> None:
    means, covariances, mask = mixture(3, 2, 3, seed=4)
    mask[:] = True
    got = predictive_probs(PredictiveSpec("checkpoints", True, 1.5), means, covariances, mask)
    g = torch.Generator().manual_seed(0)
    probs = []
    for m in range(3):
        noise = torch.randn(200_000, 2, 2, generator=g, dtype=F64)
        z = means[m] + torch.einsum("bij,sbj->sbi", torch.linalg.cholesky(covariances[m]), noise)
        probs.append(torch.softmax(z @ contrasts(3).T / 1.5, 2))
    sampled = torch.cat(probs)
    # A mean of 6e5 draws in [0, 1] is right to 7e-4; 512 Sobol points integrate to about the same.
    torch.testing.assert_close(got.probs, sampled.mean(0), atol=3e-3, rtol=0)
    torch.testing.assert_close(got.std, sampled.std(0), atol=3e-3, rtol=0)
    entropies = torch.special.entr(sampled).sum(2).mean(0)
    torch.testing.assert_close(got.expected_entropy, entropies, atol=5e-3, rtol=0)


@given(members=st.integers(1, 5), classes=st.integers(2, 4), covariance=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_invariants_of_a_mixture(members: int, classes: int, covariance: bool, seed: int) -> None:
    means, covariances, mask = mixture(members, 5, classes, seed)
    spec = PredictiveSpec("checkpoints", covariance)
    given_ = covariances if covariance else None
    got = predictive_probs(spec, means, given_, mask)
    torch.testing.assert_close(got.probs.sum(1), torch.ones(5, dtype=F64), atol=1e-14, rtol=0)
    assert (got.probs[~mask] == 0).all()
    assert (got.std[~mask] == 0).all()
    # A variable in [0, 1] varies at most p (1 - p); Jensen: a mean of entropies is below the mean's entropy.
    assert (got.std.square() <= got.probs * (1 - got.probs) + 1e-12).all()
    assert (got.expected_entropy <= torch.special.entr(got.probs).sum(1) + 1e-12).all()
    # Neither the members' order, nor other rows, nor what impossible classes hold matters.
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    moved = predictive_probs(spec, means[order], None if given_ is None else given_[order], mask)
    torch.testing.assert_close(moved.probs, got.probs, atol=1e-14, rtol=0)
    alone = predictive_probs(spec, means[:, :1], None if given_ is None else given_[:, :1], mask[:1])
    torch.testing.assert_close(alone.probs, got.probs[:1], atol=1e-14, rtol=0)
    poisoned = means.masked_fill(~mask[:, 1:], math.nan)
    assert torch.equal(predictive_probs(spec, poisoned, given_, mask).probs, got.probs)


@pytest.mark.slow
@pytest.mark.parametrize(("covariance", "members", "classes"), [(False, 2, 2), (False, 2, 3), (True, 1, 3)])
def test_the_temperature_is_scipys_minimum(covariance: bool, members: int, classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    truth = 1.5 * torch.randn(150, classes - 1, generator=g, dtype=F64)
    labels = torch.multinomial(torch.softmax(truth @ contrasts(classes).T, 1), 1, generator=g)[:, 0]
    means = 4 * truth + torch.randn(members, *truth.shape, generator=g, dtype=F64)
    covariances = 0.5 * torch.eye(classes - 1, dtype=F64).expand(*means.shape, -1) if covariance else None
    mask = torch.ones(150, classes, dtype=torch.bool)
    got = fit_predictive_temperature(means, covariances, labels, mask)

    def objective(log_temperature: float) -> float:
        spec = PredictiveSpec("checkpoints", covariance, math.exp(log_temperature))
        penalty = temperature_penalty(log_temperature, len(labels))
        return nll(predictive_probs(spec, means, covariances, mask).probs, labels) + penalty

    best = optimize.minimize_scalar(objective, bounds=(-2, 4), method="bounded", options={"xatol": 1e-6})
    # Values alone resolve the place of a minimum to the square root of their rounding; the search stops at 1e-6.
    assert math.log(got) == pytest.approx(best.x, abs=1e-5)
    assert 2 < got < 8  # the means are four times the truth


def test_the_temperature_of_one_point_is_temperature_scaling() -> None:
    means, _, mask = mixture(1, 80, 4, seed=1)
    labels = torch.zeros(80, dtype=torch.int64)
    labels[::3] = 1
    logits = means[0].masked_fill(~mask[:, 1:], 0) @ contrasts(4).T
    got = fit_predictive_temperature(means, None, labels, mask)
    assert got == fit_temperature(logits, labels, mask)
    # The same member twice goes the other way, to the search's tolerance.
    assert fit_predictive_temperature(means.repeat(2, 1, 1), None, labels, mask) == pytest.approx(got, rel=1e-5)


def test_the_temperature_stays_in_its_bounds() -> None:
    """Also where the NLL falls without end towards one side. The prior outweighs two rows, not many nor huge logits."""
    means = torch.tensor([[[3.0], [-3.0]]] * 2, dtype=F64)
    mask = torch.ones(2, 2, dtype=torch.bool)
    right = torch.tensor([0, 1])
    low, high = TEMPERATURE_BOUNDS
    assert 0.5 < fit_predictive_temperature(means, None, right, mask) < 1
    assert fit_predictive_temperature(1e4 * means, None, 1 - right, mask) == pytest.approx(high, rel=1e-5)
    many, all_of = 0.02 * means.repeat(1, 2000, 1), mask.repeat(2000, 1)
    assert fit_predictive_temperature(many, None, right.repeat(2000), all_of) == pytest.approx(low, rel=1e-5)


def test_refusals() -> None:
    means, covariances, mask = mixture(2, 3, 3, seed=0)
    ensemble, laplace = PREDICTIVES["ensemble"], PREDICTIVES["laplace"]
    with pytest.raises(ConfigError, match="takes no covariances"):
        predictive_probs(ensemble, means, covariances, mask)
    with pytest.raises(ConfigError, match="needs covariances"):
        predictive_probs(laplace, means[:1], None, mask)
    with pytest.raises(ConfigError, match="'single', but 2 means"):
        predictive_probs(laplace, means, covariances, mask)
    for wrong in (means[0], means[:0]):
        with pytest.raises(DataError, match=r"means must be \(members, 3, 2\) with at least one member"):
            predictive_probs(ensemble, wrong, None, mask)
    with pytest.raises(DataError, match="covariances must be"):
        predictive_probs(laplace, means[:1], covariances[:1, :2], mask)
    with pytest.raises(DataError, match="bool"):
        predictive_probs(ensemble, means, None, mask.long())
    with pytest.raises(NonFiniteError, match="NaN"):
        predictive_probs(ensemble, means * math.nan, None, mask)
    with pytest.raises(FactorizationError):
        predictive_probs(laplace, means[:1], -covariances[:1], mask)
    with pytest.raises(DataError, match="possible classes"):
        fit_predictive_temperature(means, covariances, torch.tensor([5, 0, 0]), mask)
