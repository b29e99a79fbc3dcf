"""The label's probability of two classes, for searches: the answers' integral with as many nodes as it needs."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import generator

from laplora.errors import FactorizationError, NonFiniteError
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.two_classes import two_class_probs
from laplora.prior.search import predictive_nll

F64 = torch.float64
MASK = torch.ones(40, 2, dtype=torch.bool)


def problem(deviation: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return 40 contrasts, their variances for a deviation of the logits' difference, and labels."""
    draw = generator(0)
    mean = 6 * torch.randn(40, 1, dtype=F64, generator=draw)
    variance = torch.full((40, 1, 1), deviation**2 / 2, dtype=F64)
    return mean, variance, torch.randint(0, 2, (40,), generator=draw)


# On both sides of the deviations at which the number of nodes doubles (1.1, 2.2, ... 35.2), and beyond the finest.
@pytest.mark.parametrize("deviation", [0.0, 0.01, 1.09, 1.11, 2.1, 2.3, 4.3, 8.7, 17.0, 35.0, 36.0, 70.0, 100.0])
def test_the_probability_is_the_answers(deviation: float) -> None:
    mean, variance, labels = problem(deviation)
    both = posterior_predictive(mean, variance, MASK).probs
    found = two_class_probs(mean, variance, labels)
    torch.testing.assert_close(found, both.gather(1, labels[:, None])[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found + two_class_probs(mean, variance, 1 - labels), torch.ones(40, dtype=F64))
    assert predictive_nll(mean, variance, labels, MASK) == pytest.approx(-float(found.log().mean()), abs=1e-9)


def test_rows_of_different_variances_keep_their_places() -> None:
    mean, _, labels = problem(0.0)
    variance = (10 ** torch.linspace(-4, 4, 40, dtype=F64))[:, None, None]
    order = torch.randperm(40, generator=generator(1))
    together = two_class_probs(mean[order], variance[order], labels[order])
    alone = torch.stack([two_class_probs(mean[i : i + 1], variance[i : i + 1], labels[i : i + 1])[0] for i in order])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)


def test_what_is_no_variance_is_refused() -> None:
    mean, variance, labels = problem(1.0)
    with pytest.raises(FactorizationError, match="positive semi-definite"):
        two_class_probs(mean, -variance, labels)
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError):
            two_class_probs(mean, variance * bad, labels)
        with pytest.raises(NonFiniteError):
            two_class_probs(mean * bad, variance, labels)
