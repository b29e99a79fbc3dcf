"""Which rows share a batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching import Waiting, form_batch, halves, next_group, padded_tokens


def rows(*lengths: int, group: str = "laplace") -> list[Waiting]:
    return [Waiting(length, group) for length in lengths]


def test_nothing_waits() -> None:
    assert form_batch([], token_budget=10) == []


def test_all_that_fits_goes_shortest_first() -> None:
    assert form_batch(rows(5, 3, 4), token_budget=15) == [1, 2, 0]


def test_rows_of_like_length_go_with_the_oldest() -> None:
    assert form_batch(rows(10, 2, 11, 9, 30), token_budget=33) == [3, 0, 2]


def test_budget_counts_padding() -> None:
    assert form_batch(rows(10, 1, 1), token_budget=29) == [2, 0]
    assert form_batch(rows(10, 1, 1), token_budget=30) == [1, 2, 0]


def test_oldest_goes_even_over_the_budget() -> None:
    assert form_batch(rows(50, 1), token_budget=10) == [0]


def test_groups_never_mix() -> None:
    waiting = [Waiting(3, "map"), Waiting(3, "laplace"), Waiting(3, "map")]
    assert sorted(form_batch(waiting, token_budget=100)) == [0, 2]


def test_a_group_is_asked_for_by_name() -> None:
    waiting = [Waiting(3, "map"), Waiting(9, "laplace"), Waiting(3, "map"), Waiting(8, "laplace")]
    assert form_batch(waiting, token_budget=18, group="laplace") == [3, 1]
    assert form_batch(waiting, token_budget=17, group="laplace") == [1]


def test_groups_take_turns() -> None:
    waiting = [Waiting(3, "laplace"), Waiting(3, "map"), Waiting(3, "other")]
    assert next_group(waiting, {}) == "laplace"
    assert next_group(waiting, {"laplace": 1}) == "map"
    assert next_group(waiting, {"laplace": 1, "map": 2}) == "other"
    assert next_group(waiting, {"laplace": 4, "map": 2, "other": 3}) == "map"
    assert next_group(waiting[:1], {"laplace": 4}) == "laplace"


waiting_rows = st.lists(st.builds(Waiting, st.integers(1, 64), st.sampled_from(["map", "laplace"])), min_size=1)


@given(waiting_rows, st.integers(1, 200))
def test_every_batch_keeps_its_promises(waiting: list[Waiting], budget: int) -> None:
    batch = form_batch(waiting, token_budget=budget)
    lengths = [waiting[i].tokens for i in batch]
    assert 0 in batch
    assert len(set(batch)) == len(batch)
    assert {waiting[i].group for i in batch} == {waiting[0].group}
    assert lengths == sorted(lengths)
    assert padded_tokens(lengths) <= budget or batch == [0]


@given(waiting_rows, st.integers(1, 200))
def test_every_row_goes_once(waiting: list[Waiting], budget: int) -> None:
    left = list(enumerate(waiting))
    sent: list[int] = []
    while left:
        batch = form_batch([row for _, row in left], token_budget=budget)
        sent += [left[i][0] for i in batch]
        left = [item for i, item in enumerate(left) if i not in set(batch)]
    assert sorted(sent) == list(range(len(waiting)))


@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_halves_cover_without_overlap(size: int) -> None:
    first, second = halves(size)
    assert [*first, *second] == list(range(size))
    assert len(first) > 0
    assert len(second) > 0
