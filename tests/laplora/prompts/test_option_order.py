"""Orders of options: balanced, the same prompts for several users' orders, and exact on the way back."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.errors import ConfigError, DataError, InvalidInputError
from laplora.linearised import contrasts
from laplora.prompts.option_order import (
    Order,
    option_orders,
    order_count,
    permute_choices,
    restore_contrasts,
    restore_logits,
)

F64 = torch.float64


def random_gaussian(batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits (batch, classes), their contrasts and a full-rank covariance of the contrasts."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, generator=g, dtype=F64)
    a = torch.randn(batch, classes - 1, classes - 1, generator=g, dtype=F64)
    return logits, logits @ contrasts(classes), a @ a.mT


@pytest.mark.parametrize("count", range(2, 12))
def test_orders_are_balanced_and_the_same_for_every_user(count: int) -> None:
    orders = option_orders(count)
    assert orders[0] == tuple(range(count))
    assert len(orders) == len(set(orders)) == order_count(count) == (6 if count == 3 else count)
    for place in range(count):
        shown = [order[place] for order in orders]
        assert all(shown.count(option) == len(orders) // count for option in range(count))
    for user in orders:  # whichever of them the user gives, the prompts are the same
        assert {tuple(user[option] for option in order) for order in orders} == set(orders)
    if count % 2 == 0 or count == 3:
        follows = [pair for order in orders for pair in pairwise(order)]
        assert {follows.count(pair) for pair in permutations(range(count), 2)} == {len(orders) // count}


@pytest.mark.parametrize("count", range(2, 12))
def test_two_orders_are_the_users_and_its_reverse(count: int) -> None:
    orders = option_orders(count, "reverse")
    assert orders == (tuple(range(count)), tuple(range(count))[::-1])
    assert order_count(count, "reverse") == 2
    assert option_orders(count, "all") == option_orders(count)
    assert option_orders(count, False) == orders[:1]
    assert order_count(count, False) == 1


def test_choices_are_shown_in_the_order_and_nothing_else_changes() -> None:
    fields = {"question": "Which?", "choices": ["a", "b", "c"]}
    assert permute_choices(fields, (2, 0, 1)) == {"question": "Which?", "choices": ["c", "a", "b"]}
    assert fields["choices"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "Good."}, r"order_average reorders the field 'choices', this input has \['text'\]"),
        ({"question": "Which?", "choices": "ab"}, "must be a list of strings"),
        ({"question": "Which?", "choices": 3}, "must be a list of strings"),
        ({"question": "Which?", "choices": ["a", "b", "c"]}, "an order of 2 options cannot show 3 choices"),
    ],
)
def test_inputs_without_options_to_reorder_are_refused_by_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        permute_choices(fields, (1, 0))
    assert caught.value.field == "choices"


@pytest.mark.parametrize("order", [(0, 0), (1, 2), (0,), (), (0, 1, 3)])
def test_what_is_no_permutation_is_refused(order: Order) -> None:
    with pytest.raises(ConfigError, match="at least two options, got 1"):
        option_orders(1)
    with pytest.raises(ConfigError, match="must be a permutation"):
        permute_choices({"choices": ["a"] * len(order)}, order)
    with pytest.raises(ConfigError, match="must be a permutation"):
        restore_logits(torch.zeros(1, 4), order)


def test_orders_that_do_not_fit_the_batch_are_refused() -> None:
    with pytest.raises(DataError, match="2 orders for 3 rows"):
        restore_logits(torch.zeros(3, 2), [(0, 1), (1, 0)])
    with pytest.raises(DataError, match="order of 3 options does not fit 2 classes"):
        restore_contrasts(torch.zeros(1, 1), None, (0, 1, 2))


def test_restored_logits_stand_where_the_user_put_their_option() -> None:
    order = (2, 0, 1)
    scores = {"a": 1.0, "b": 2.0, "c": 3.0}
    shown = permute_choices({"choices": ["a", "b", "c"]}, order)["choices"]
    logits = torch.tensor([[scores[c] for c in shown] + [9.0]])  # a fourth class that this row does not have
    assert restore_logits(logits, order).tolist() == [[1.0, 2.0, 3.0, 9.0]]


@given(classes=st.integers(2, 6), seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=60)
def test_contrasts_and_covariance_are_those_of_the_restored_logits(
    classes: int, seed: int, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(2, classes), min_size=1, max_size=4))
    orders = [tuple(data.draw(st.permutations(range(count)))) for count in counts]
    logits, mean, covariance = random_gaussian(len(counts), classes, seed)
    got_mean, got_covariance = restore_contrasts(mean, covariance, orders)
    q = contrasts(classes)
    # The truth moves the logits and their centred covariance one by one; a few float64 roundings each.
    torch.testing.assert_close(got_mean, restore_logits(logits, orders) @ q, atol=1e-13, rtol=1e-13)
    full = q @ covariance @ q.T
    for row, order in enumerate(orders):
        place = {option: at for at, option in enumerate(order)}
        at = [place.get(option, option) for option in range(classes)]
        wanted = torch.stack([torch.stack([full[row, i, j] for j in at]) for i in at])
        torch.testing.assert_close(q @ got_covariance[row] @ q.T, wanted, atol=1e-12, rtol=1e-12)
        # The contrasts of the possible classes never mix with those of the impossible ones.
        c = counts[row]
        torch.testing.assert_close(
            got_covariance[row, : c - 1, : c - 1],
            restore_contrasts(mean[row : row + 1, : c - 1], covariance[row : row + 1, : c - 1, : c - 1], order)[1][0],
            atol=1e-13,
            rtol=1e-13,
        )


def test_one_order_serves_all_rows_and_a_missing_covariance_stays_missing() -> None:
    logits, mean, covariance = random_gaussian(3, 4, 0)
    order = (3, 1, 0, 2)
    torch.testing.assert_close(
        restore_contrasts(mean, covariance, order), restore_contrasts(mean, covariance, [order] * 3)
    )
    assert torch.equal(restore_logits(logits, order), restore_logits(logits, [order] * 3))
    restored, nothing = restore_contrasts(mean.float(), None, order)
    assert nothing is None
    assert restored.dtype == F64
