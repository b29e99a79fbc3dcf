"""Cross-fitting: every row once, without itself, and whole predictives as single numbers."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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

    assert torch.equal(cross_fitted(fit_score, 23), torch.arange(23, dtype=F64))
    assert [len(score) for _, score in calls] == [5, 5, 5, 4, 4]
    for fit, score in calls:
        assert not fit & score
        assert fit | score == set(range(23))
    assert [set(score.tolist()) for _, score in fold_rows(23)] == [score for _, score in calls]
    assert [set(score.tolist()) for _, score in fold_rows(23, seed=1)] != [score for _, score in calls]
    assert [len(score) for _, score in fold_rows(3)] == [1, 1, 1]
    assert [len(score) for _, score in fold_rows(60, groups=torch.arange(60) // 3)] == [12] * 5


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.integers(2, 7), st.integers(0, 99))
def test_no_fold_parts_a_group_and_none_is_empty(numbers: list[int], folds: int, seed: int) -> None:
    groups, sizes = torch.tensor(numbers), Counter(numbers)
    if len(sizes) < 2:
        with pytest.raises(DataError, match="two groups of rows, and three"):
            fold_rows(len(numbers), folds, seed, groups)
        return
    parts = fold_rows(len(numbers), folds, seed, groups)
    assert len(parts) == min(folds, len(sizes))
    for fit, score in parts:
        assert not set(groups[fit].tolist()) & set(groups[score].tolist())
        assert sorted([*fit.tolist(), *score.tolist()]) == list(range(len(numbers)))
        assert len(score)
    most = max(len(score) for _, score in parts)
    assert most <= len(numbers) / len(parts) + max(sizes.values())


def test_cross_fitting_refuses() -> None:
    with pytest.raises(ConfigError, match="two folds"):
        cross_fitted(lambda f, s: s.double(), 10, folds=1)
    with pytest.raises(DataError, match="two rows"):
        cross_fitted(lambda f, s: s.double(), 1)
    with pytest.raises(DataError, match=r"2 rows"):
        cross_fitted(lambda f, s: s.double()[:1], 10)
    with pytest.raises(NonFiniteError):
        cross_fitted(lambda f, s: s * math.nan, 10)
    served = torch.zeros(10, 1)
    with pytest.raises(DataError, match=r"\(10, 1\), got \(10,\)"):
        rank_aligned(lambda fit: torch.zeros(10), served)
    with pytest.raises(DataError, match="finite, of shape"):
        rank_aligned(lambda fit: served, served / 0)


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


def test_a_rank_is_that_of_the_fit_without_the_row() -> None:
    """Where the fits differ by a monotone map, no row changes its rank: the served scores come back, bit for bit."""
    values = torch.arange(20, dtype=F64)[:, None]
    assert torch.equal(rank_aligned(lambda fit: values * values[fit].mean(), 3 * values), 3 * values)

    def scores(fit: torch.Tensor) -> torch.Tensor:
        shifted = values + 100
        shifted[fit] -= 100
        return shifted

    got = rank_aligned(scores, values)
    for fitted, held_out in fold_rows(20):
        assert bool((got[held_out] >= len(fitted)).all())
