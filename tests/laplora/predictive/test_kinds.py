"""A predictive's moments against the integral they come from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.errors import ConfigError, DataError, FactorizationError, NonFiniteError
from laplora.linearised import class_probs, contrasts
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.probs import predictive_probs

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


def test_refusals() -> None:
    means, covariances, mask = gaussians(2, 3, 3, seed=0)
    (mean, _), (covariance, _) = means, covariances
    refused: list[tuple[Any, type[Exception], str]] = [
        ((means, None, mask), DataError, r"must be \(3, 2\)"),
        ((mean, covariance[:2], mask), DataError, "must be"),
        ((mean, None, mask.long()), DataError, "bool"),
        ((mean * math.nan, None, mask), NonFiniteError, "NaN"),
        ((mean, -covariance, mask), FactorizationError, "positive semi-definite"),
        *(((mean, None, mask, bad), ConfigError, "positive") for bad in (0.0, math.inf, math.nan)),
    ]
    for given_, error, message in refused:
        with pytest.raises(error, match=message):
            predictive_probs(*given_)
