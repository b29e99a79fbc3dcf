"""Which rows share a batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.scoring.batching import Waiting, form_batch, next_batch, padded_tokens
from service.scoring.fairness import Request, Turns


def rows(*lengths: int) -> list[Waiting]:
    request = Request("a", "laplace")
    return [Waiting(length, request) for length in lengths]


def test_rows_of_like_length_go_with_the_seed_and_rows_of_one_length_in_order_of_arrival() -> None:
    assert form_batch(rows(10, 2, 11, 9, 30), seed=0, token_budget=33) == [3, 0, 2]
    assert form_batch(rows(30, 2, 11, 9, 10), seed=4, token_budget=33) == [3, 4, 2]
    assert form_batch(rows(3, 3, 3, 3, 3), seed=2, token_budget=9) == [0, 1, 2]


def test_rows_of_a_later_tier_take_only_the_room_that_is_left() -> None:
    waiting = rows(10, 10, 10, 8, 6)
    assert form_batch(waiting, seed=0, token_budget=30) == [0, 1, 2]
    assert form_batch(waiting, seed=0, token_budget=30, tiers=[{0, 3, 4}]) == [4, 3, 0]
    assert form_batch(waiting, seed=0, token_budget=40, tiers=[{3, 4}]) == [4, 3, 0, 1]
    assert form_batch(waiting, seed=0, token_budget=40, tiers=[{4}, {2, 3}]) == [4, 3, 0, 2]


requests = st.builds(Request, st.sampled_from(["a", "b", "job:c"]), st.sampled_from(["map", "laplace"]))


@st.composite
def waiting_rows(draw: st.DrawFn) -> list[Waiting]:
    known = draw(st.lists(requests, min_size=1, max_size=6))
    return draw(st.lists(st.builds(Waiting, st.integers(1, 64), st.sampled_from(known)), min_size=1))


@given(waiting_rows(), st.integers(1, 200), st.data())
def test_every_batch_keeps_its_promises(waiting: list[Waiting], budget: int, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, len(waiting) - 1))
    tiers = data.draw(st.lists(st.sets(st.integers(0, len(waiting) - 1)), max_size=2))
    batch = form_batch(waiting, seed=seed, token_budget=budget, tiers=tiers)
    lengths = [waiting[i].tokens for i in batch]
    assert seed in batch
    assert len(set(batch)) == len(batch)
    assert {waiting[i].request.group for i in batch} == {waiting[seed].request.group}
    assert lengths == sorted(lengths)
    assert padded_tokens(lengths) <= budget or batch == [seed]
    # No room is left that a waiting row could use.
    for i, row in enumerate(waiting):
        if i not in batch and row.request.group == waiting[seed].request.group:
            assert padded_tokens([*lengths, row.tokens]) > budget


@given(waiting_rows(), st.integers(1, 200))
def test_every_row_goes_once(waiting: list[Waiting], budget: int) -> None:
    left = list(waiting)
    turns = Turns()
    while left:
        batch, turns = next_batch(left, turns, token_budget=budget)
        assert batch
        assert len(set(batch)) == len(batch)
        left = [row for i, row in enumerate(left) if i not in set(batch)]
