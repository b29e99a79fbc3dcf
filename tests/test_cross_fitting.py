"""Cross-fitting: every row once, without itself, and whole predictives as single numbers."""

from __future__ import annotations

import math

import pytest
import torch

from laplora.cross_fitting import cross_fitted, cross_fitted_predictive, fold_rows
from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.predictive import PosteriorPredictive

F64 = torch.float64


def test_every_row_is_scored_once_without_being_fitted_on() -> None:
    calls: list[tuple[set[int], set[int]]] = []

    def fit_score(fit: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        assert torch.equal(fit, fit.sort().values)
        calls.append((set(fit.tolist()), set(score.tolist())))
        return score.double()

    got = cross_fitted(fit_score, 23, folds=5)
    assert torch.equal(got, torch.arange(23, dtype=F64))
    assert len(calls) == 5
    for fit, score in calls:
        assert not fit & score
        assert fit | score == set(range(23))
        assert len(score) in (4, 5)
    again, other = [], []
    cross_fitted(lambda f, s: (again.append(set(s.tolist())), s.double())[1], 23)
    cross_fitted(lambda f, s: (other.append(set(s.tolist())), s.double())[1], 23, seed=1)
    assert again == [score for _, score in calls]
    assert other != again
    calls.clear()
    cross_fitted(fit_score, 3, folds=5)
    assert [len(score) for _, score in calls] == [1, 1, 1]
    assert [held.tolist() for _, held in fold_rows(3)] == [sorted(score) for _, score in calls]


def test_cross_fitting_charges_for_what_was_fitted() -> None:
    """One free number per row fits its own rows perfectly and says nothing about others."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=F64)
    got = cross_fitted(lambda fit, score: (values[score] - values[fit].mean()).square(), 40)
    assert float(got.mean()) > float((values - values.mean()).square().mean())


def test_cross_fitting_refuses() -> None:
    with pytest.raises(ConfigError, match="two folds"):
        cross_fitted(lambda f, s: s.double(), 10, folds=1)
    with pytest.raises(DataError, match="two rows"):
        cross_fitted(lambda f, s: s.double(), 1)
    with pytest.raises(DataError, match=r"2 rows"):
        cross_fitted(lambda f, s: s.double()[:1], 10)
    with pytest.raises(NonFiniteError):
        cross_fitted(lambda f, s: s * math.nan, 10)


def test_a_predictive_is_put_together_from_its_folds_in_row_order() -> None:
    g = torch.Generator().manual_seed(0)
    whole = PosteriorPredictive(*(torch.rand(17, *size, generator=g, dtype=F64) for size in ((3,), (3,), ())))

    def answer(fitted: torch.Tensor, held_out: torch.Tensor) -> PosteriorPredictive:
        shift = fitted.sum()  # of the fit: shows which fold a row's answer is from
        return PosteriorPredictive(whole.probs[held_out] + shift, whole.std[held_out], whole.expected_entropy[held_out])

    got = cross_fitted_predictive(answer, 17)
    assert torch.equal(got.std, whole.std)
    assert torch.equal(got.expected_entropy, whole.expected_entropy)
    for fitted, held_out in fold_rows(17):
        assert torch.equal(got.probs[held_out], whole.probs[held_out] + fitted.sum())
