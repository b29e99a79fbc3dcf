"""The label's probability, for searches: the answers' integral with other points, of two classes with enough nodes."""

from __future__ import annotations

import math

import pytest
import torch
from fast_path import close
from tiny_models import generator

from laplora.errors import FactorizationError, NonFiniteError
from laplora.linearised import class_probs, contrast_logits
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.label_draws import label_probs
from laplora.predictive.two_classes import two_class_probs
from laplora.prior.search import predictive_nll

MASK = torch.ones(40, 2, dtype=torch.bool)


def problem(*, rows: int = 40, classes: int = 20, spread: float = 0.5) -> tuple[torch.Tensor, ...]:
    """Return contrasts, covariances of rank 5, labels and a class mask; every third row lacks the last two classes."""
    draw = generator(0)
    mean = 2 * torch.randn(rows, classes - 1, dtype=torch.float64, generator=draw)
    half = spread * torch.randn(rows, classes - 1, 5, dtype=torch.float64, generator=draw)
    mask = torch.ones(rows, classes, dtype=torch.bool)
    mask[::3, -2:] = False
    labels = torch.randint(0, classes - 2, (rows,), generator=draw)
    return mean, half @ half.mT, labels, mask


def test_the_mean_log_probability_is_the_answers() -> None:
    mean, covariance, labels, mask = problem(rows=150)  # whose points are not all held at a time
    probs = posterior_predictive(mean, covariance, mask, samples=8192).probs.gather(1, labels[:, None])[:, 0]
    found = label_probs(mean, covariance, labels, mask)
    # 64 antithetic pairs: a few per cent of each probability, less of the mean.
    torch.testing.assert_close(found.log(), probs.log(), rtol=0, atol=0.4)
    assert abs(float((found.log() - probs.log()).mean())) < 0.02
    assert predictive_nll(mean, covariance, labels, mask) == pytest.approx(-float(found.log().mean()))
    last = (one[-1:] for one in (mean, covariance, labels, mask))
    close(label_probs(*last), found[-1:], 1e-12)
    # No covariance is MAP, and an indefinite one is refused.
    found = label_probs(mean, 0 * covariance, labels, mask)
    close(found, class_probs(contrast_logits(mean), mask).gather(1, labels[:, None])[:, 0], 1e-6)  # float32 logits
    with pytest.raises(FactorizationError):
        label_probs(mean, covariance - torch.eye(19, dtype=torch.float64), labels, mask)


def two_classes(deviation: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return 40 contrasts, their variances for a deviation of the logits' difference, and labels."""
    draw = generator(0)
    mean = 6 * torch.randn(40, 1, dtype=torch.float64, generator=draw)
    variance = torch.full((40, 1, 1), deviation**2 / 2, dtype=torch.float64)
    return mean, variance, torch.randint(0, 2, (40,), generator=draw)


# On both sides of the deviations at which the number of nodes doubles (1.1, 2.2, ... 35.2), and beyond the finest.
@pytest.mark.parametrize("deviation", [0.0, 0.01, 1.09, 1.11, 2.1, 2.3, 4.3, 8.7, 17.0, 35.0, 36.0, 70.0, 100.0])
def test_the_probability_is_the_answers(deviation: float) -> None:
    mean, variance, labels = two_classes(deviation)
    both = posterior_predictive(mean, variance, MASK).probs
    found = two_class_probs(mean, variance, labels)
    torch.testing.assert_close(found, both.gather(1, labels[:, None])[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found + two_class_probs(mean, variance, 1 - labels), torch.ones(40, dtype=torch.float64))
    assert predictive_nll(mean, variance, labels, MASK) == pytest.approx(-float(found.log().mean()), abs=1e-9)


def test_rows_of_different_variances_keep_their_places() -> None:
    mean, _, labels = two_classes(0.0)
    variance = (10 ** torch.linspace(-4, 4, 40, dtype=torch.float64))[:, None, None]
    order = torch.randperm(40, generator=generator(1))
    together = two_class_probs(mean[order], variance[order], labels[order])
    alone = torch.stack([two_class_probs(mean[i : i + 1], variance[i : i + 1], labels[i : i + 1])[0] for i in order])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)


def test_what_is_no_variance_is_refused() -> None:
    mean, variance, labels = two_classes(1.0)
    with pytest.raises(FactorizationError, match="positive semi-definite"):
        two_class_probs(mean, -variance, labels)
    for bad in ((mean, variance * math.inf), (mean * math.nan, variance)):
        with pytest.raises(NonFiniteError):
            two_class_probs(*bad, labels)
