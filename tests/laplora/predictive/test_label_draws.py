"""The label's probability among many classes, for searches: the answers' integral with other points."""

from __future__ import annotations

import pytest
import torch
from fast_path import close
from tiny_models import generator

from laplora.errors import FactorizationError
from laplora.linearised import class_probs, contrast_logits
from laplora.predictive.gaussian import posterior_predictive
from laplora.predictive.label_draws import label_probs
from laplora.prior.search import predictive_nll


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


def test_no_covariance_is_map_and_an_indefinite_one_is_refused() -> None:
    mean, covariance, labels, mask = problem()
    found = label_probs(mean, 0 * covariance, labels, mask)
    close(found, class_probs(contrast_logits(mean), mask).gather(1, labels[:, None])[:, 0], 1e-6)  # float32 logits
    with pytest.raises(FactorizationError):
        label_probs(mean, covariance - torch.eye(19, dtype=torch.float64), labels, mask)
