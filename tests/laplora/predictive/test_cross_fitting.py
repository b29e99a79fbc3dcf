"""Cross-fitting: every row once, without itself, and whole predictives as single numbers."""

from __future__ import annotations

import math

import pytest
import torch

from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.linearised import PosteriorPredictive
from laplora.predictive.cross_fitting import cross_fitted, cross_fitted_predictive, fold_rows, rank_aligned

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


def test_a_scale_of_each_fold_leaves_the_served_scores() -> None:
    """Where the fits differ by a monotone map, no row changes its rank: the served scores come back, bit for bit."""
    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = rank_aligned(lambda fit: values * values[fit].mean(), 3 * values)
    assert torch.equal(got, 3 * values)


def test_a_rank_is_that_of_the_fit_without_the_row() -> None:
    """A fit that puts the rows it saw first gives a held-out row a later rank than a fit on all rows would."""
    values = torch.arange(20, dtype=torch.float64)[:, None]

    def scores(fit: torch.Tensor) -> torch.Tensor:
        shifted = values + 100
        shifted[fit] -= 100
        return shifted

    got = rank_aligned(scores, values)
    for fitted, held_out in fold_rows(20):
        assert bool((got[held_out] >= len(fitted)).all())


def test_a_row_has_no_part_in_its_own_rank() -> None:
    """Another value of one row in what is fitted changes other folds' scores, and none of its own fold's."""
    g = torch.Generator().manual_seed(3)
    values, served = torch.rand(30, generator=g, dtype=torch.float64), torch.rand(30, 1, generator=g).double()

    def aligned(fitted_on: torch.Tensor) -> torch.Tensor:
        return rank_aligned(lambda fit: (values - fitted_on[fit].mean()).abs()[:, None], served)[:, 0]

    other = values.clone()
    other[7] += 20
    fold = next(held_out for _, held_out in fold_rows(30) if 7 in held_out)
    before, after = aligned(values), aligned(other)
    assert torch.equal(before[fold], after[fold])
    assert not torch.equal(before, after)


def test_scores_to_align_must_fit_together() -> None:
    served = torch.zeros(10, 1)
    with pytest.raises(DataError, match=r"\(10, 1\), got \(10,\)"):
        rank_aligned(lambda fit: torch.zeros(10), served)
    with pytest.raises(DataError, match="finite, of shape"):
        rank_aligned(lambda fit: served, served / 0)
