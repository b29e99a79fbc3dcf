"""The posterior predictive against one-dimensional truths, brute force, and its invariants."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from laplora.errors import ConfigError, DataError, FactorizationError, NonFiniteError
from laplora.linearised import contrasts
from laplora.predictive.gaussian import posterior_predictive

F64 = torch.float64


def full_mask(batch: int, classes: int) -> torch.Tensor:
    return torch.ones(batch, classes, dtype=torch.bool)


def random_posterior(batch: int, classes: int, scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return contrast means and full-rank covariances with a mean variance of ``scale``."""
    g = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(batch, classes - 1, generator=g, dtype=F64)
    a = torch.randn(batch, classes - 1, classes - 1, generator=g, dtype=F64)
    covariance = a @ a.mT
    return mean, covariance * (scale / covariance.diagonal(dim1=1, dim2=2).mean(1))[:, None, None]


def scalar_truth(mean: float, variance: float) -> tuple[float, float, float]:
    """Return mean, standard deviation and expected entropy of sigmoid(N(mean, variance)) by adaptive quadrature."""
    sigma = math.sqrt(variance)
    edges = sorted({-12.0, 12.0, *(z for t in (-40, -8, 0, 8, 40) if abs(z := (t - mean) / sigma) < 12)})

    def expect(function: Callable[[float], float]) -> float:
        def integrand(z: float) -> float:
            d = mean + sigma * z
            p = 1 / (1 + math.exp(-d)) if d > -700 else 0.0
            return function(p) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        options = {"epsabs": 1e-14, "epsrel": 1e-13, "limit": 400}
        return float(sum(integrate.quad(integrand, a, b, **options)[0] for a, b in pairwise(edges)))

    def entropy(p: float) -> float:
        return sum(-q * math.log(q) for q in (p, 1 - p) if 0 < q < 1)

    expected = expect(lambda p: p)
    return expected, math.sqrt(expect(lambda p: (p - expected) ** 2)), expect(entropy)


@pytest.mark.parametrize("classes", [3, 9])
def test_contrasts_are_orthonormal_sum_to_zero_and_nest(classes: int) -> None:
    q = contrasts(classes)
    # A few float64 roundings per entry.
    torch.testing.assert_close(q.T @ q, torch.eye(classes - 1, dtype=F64), atol=1e-15 * classes, rtol=0)
    torch.testing.assert_close(q.sum(0), torch.zeros(classes - 1, dtype=F64), atol=1e-15 * classes, rtol=0)
    assert torch.equal(q[: classes - 1, : classes - 2], contrasts(classes - 1))


@pytest.mark.parametrize("variance", [1e-6, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("mean", [0.0, -1.3, -15.0])
def test_two_classes_match_adaptive_quadrature(mean: float, variance: float) -> None:
    """The difference of the logits is N(mean, variance), so the contrast is it over the root of two."""
    m, v = torch.tensor([[mean / math.sqrt(2)]], dtype=F64), torch.tensor([[[variance / 2]]], dtype=F64)
    got = posterior_predictive(m, v, full_mask(1, 2))
    # The trapezoid's own error is below 3e-11 at variance 1e4 and rounding below 1e3; the truth is good to about
    # 1e-12, and 1 - p in its entropy loses p's tail below 1e-16.
    found = (got.probs[0, 0].item(), got.std[0, 0].item(), got.expected_entropy[0].item())
    assert found == pytest.approx(scalar_truth(mean, variance), abs=1e-10)


@pytest.mark.parametrize("classes", [3, 6])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_more_classes_match_brute_force_sampling(classes: int, scale: float) -> None:
    mean, covariance = random_posterior(4, classes, scale, seed=classes)
    got = posterior_predictive(mean, covariance, full_mask(4, classes), samples=2048)
    noise = torch.randn(200_000, classes - 1, generator=torch.Generator().manual_seed(5), dtype=F64)
    for row in range(4):
        # Its own factorisation (Cholesky) and plain Monte Carlo.
        z = mean[row] + noise @ torch.linalg.cholesky(covariance[row]).T
        probs = torch.softmax(z @ contrasts(classes).T, 1)
        # Plain Monte Carlo is off by at most 0.5 / sqrt(200000) = 1.1e-3 (one sigma); 2048 Sobol points measured
        # at most 4e-3 off at variance 10 over several seeds.
        torch.testing.assert_close(got.probs[row], probs.mean(0), atol=8e-3, rtol=0)
        torch.testing.assert_close(got.std[row], probs.std(0), atol=2e-2, rtol=0)
        entropy = torch.special.entr(probs).sum(1).mean()
        torch.testing.assert_close(got.expected_entropy[row], entropy, atol=2e-2, rtol=0)


@given(classes=st.integers(2, 6), scale=st.floats(0, 100), seed=st.integers(0, 10_000))
@settings(max_examples=60)
def test_moments_are_those_of_probabilities(classes: int, scale: float, seed: int) -> None:
    mean, covariance = random_posterior(3, classes, scale, seed)
    got = posterior_predictive(mean, covariance, full_mask(3, classes), samples=64)
    assert got.probs.dtype == got.std.dtype == got.expected_entropy.dtype == F64
    torch.testing.assert_close(got.probs.sum(1), torch.ones(3, dtype=F64), atol=1e-14, rtol=0)
    assert (got.probs >= 0).all()
    # No variable in [0, 1] with mean p varies more than p (1 - p); 1e-12 is rounding.
    assert (got.std.square() <= got.probs * (1 - got.probs) + 1e-12).all()
    # Jensen: the mean entropy is at most the entropy of the mean.
    total = torch.special.entr(got.probs).sum(1)
    assert (got.expected_entropy <= total + 1e-10).all()
    assert (got.expected_entropy >= -1e-10).all()
    # No covariance is the MAP answer, to rounding.
    at_map = posterior_predictive(mean, 0 * covariance, full_mask(3, classes))
    softmax = torch.softmax(mean @ contrasts(classes).T, 1)
    torch.testing.assert_close(at_map.probs, softmax, atol=1e-15, rtol=1e-13)
    torch.testing.assert_close(at_map.std, torch.zeros_like(softmax), atol=1e-14, rtol=0)
    torch.testing.assert_close(at_map.expected_entropy, torch.special.entr(softmax).sum(1), atol=1e-13, rtol=0)


def test_a_row_is_independent_of_its_batch_and_of_global_random_state() -> None:
    mean, covariance = random_posterior(9, 5, 2.0, seed=8)
    mask = torch.arange(5) < torch.tensor([2, 5, 3, 2, 4, 5, 5, 3, 2])[:, None]
    state = torch.get_rng_state()
    together = posterior_predictive(mean, covariance, mask)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    for i in range(9):
        alone = posterior_predictive(mean[i : i + 1], covariance[i : i + 1], mask[i : i + 1])
        for name in ("probs", "std", "expected_entropy"):
            # To rounding: a matrix product may order its sums by shape.
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[i], atol=1e-14, rtol=0)


def test_impossible_classes_are_exactly_zero_change_nothing_and_relabelling_relabels() -> None:
    """A 3-class row among 5 labels is the 3-class problem, whatever the other two logits are."""
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 5, generator=g, dtype=F64)
    a = torch.randn(5, 5, generator=g, dtype=F64)
    covariance = a @ a.T
    q5, q3, order = contrasts(5), contrasts(3), [2, 0, 1]
    mask = torch.tensor([[True, True, True, False, False]])
    wide = posterior_predictive(logits @ q5, (q5.T @ covariance @ q5)[None], mask)
    narrow, moved = (
        posterior_predictive(logits[:, by] @ q3, (q3.T @ covariance[by][:, by] @ q3)[None], full_mask(1, 3))
        for by in ([0, 1, 2], order)
    )
    torch.testing.assert_close(moved.probs, narrow.probs[:, order], atol=6e-3, rtol=0)  # the error of 512 Sobol points
    assert not wide.probs[0, 3:].any()
    assert not wide.std[0, 3:].any()
    # The two covariances differ in rounding (1e-15), which a square root near singularity may raise.
    torch.testing.assert_close(wide.probs[:, :3], narrow.probs, atol=1e-10, rtol=0)
    torch.testing.assert_close(wide.expected_entropy, narrow.expected_entropy, atol=1e-10, rtol=0)
    poisoned = (logits @ q5).index_fill(1, torch.tensor([2, 3]), math.nan)
    again = posterior_predictive(poisoned, (q5.T @ covariance @ q5)[None], mask)
    assert torch.equal(again.probs, wide.probs)


def test_singular_and_slightly_negative_covariances_are_fine() -> None:
    direction = torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    singular = direction.mT @ direction
    mean = torch.zeros(1, 3, dtype=F64)
    exact = posterior_predictive(mean, singular[None], full_mask(1, 4))
    rounded = posterior_predictive(mean, (singular - 1e-13 * torch.eye(3, dtype=F64))[None], full_mask(1, 4))
    # The square root of 1e-13 is 3e-7: eigenvalues at 0 may come out as that much of a standard deviation.
    torch.testing.assert_close(exact.probs, rounded.probs, atol=1e-6, rtol=0)
    with pytest.raises(FactorizationError, match="positive semi-definite"):
        posterior_predictive(mean, -0.1 * torch.eye(3, dtype=F64)[None], full_mask(1, 4))


@pytest.mark.parametrize("classes", [2, 3])
def test_extreme_logits_and_empty_batches_stay_finite(classes: int) -> None:
    mean = torch.tensor([[900.0], [-900.0], [0.0]], dtype=F64).expand(3, classes - 1)
    for scale in (0.0, 1e-12, 1e6):
        covariance = scale * torch.eye(classes - 1, dtype=F64).expand(3, -1, -1)
        got = posterior_predictive(mean, covariance, full_mask(3, classes))
        assert all(moment.isfinite().all() for moment in (got.probs, got.std, got.expected_entropy))
        assert len(posterior_predictive(mean[:0], covariance[:0], full_mask(0, classes))) == 0


def test_refusals() -> None:
    mean, covariance, mask = torch.zeros(1, 2), torch.zeros(1, 2, 2), full_mask(1, 3)
    with pytest.raises(ConfigError, match="two classes"):
        contrasts(1)
    with pytest.raises(ConfigError, match="power of two"):
        posterior_predictive(mean, covariance, mask, samples=500)
    refused: list[tuple[tuple[torch.Tensor, ...], type[Exception], str]] = [
        ((mean, covariance[:, :1], mask), DataError, "must be"),
        ((mean, covariance, mask.long()), DataError, "bool"),
        ((mean, covariance, torch.tensor([[True, False, True]])), DataError, "first classes"),
        ((mean * math.nan, covariance, mask), NonFiniteError, "NaN"),
        ((mean, covariance + math.inf, mask), NonFiniteError, "NaN"),
    ]
    for given_, error, message in refused:
        with pytest.raises(error, match=message):
            posterior_predictive(*given_)
