"""Options in reverse: shown so, and exact on the way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laplora.errors import ConfigError, DataError, InvalidInputError
from laplora.linearised import contrasts
from laplora.prompts.option_order import restore_contrasts, restore_logits, reverse_choices

F64 = torch.float64


def test_choices_are_shown_in_reverse_and_nothing_else_changes() -> None:
    fields = {"question": "Which?", "choices": ["a", "b", "c"]}
    assert reverse_choices(fields) == {"question": "Which?", "choices": ["c", "b", "a"]}
    assert fields["choices"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "Good."}, r"order_average reorders the field 'choices', this input has \['text'\]"),
        ({"question": "Which?", "choices": "ab"}, "must be a list of strings"),
        ({"question": "Which?", "choices": 3}, "must be a list of strings"),
    ],
)
def test_inputs_without_options_to_reorder_are_refused_by_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        reverse_choices(fields)
    assert caught.value.field == "choices"


def test_counts_that_do_not_fit_the_batch_are_refused() -> None:
    with pytest.raises(DataError, match="got 2 for 3 rows"):
        restore_logits(torch.zeros(3, 2), [2, 2])
    with pytest.raises(DataError, match="order of 3 options does not fit 2 classes"):
        restore_contrasts(torch.zeros(1, 1), None, [3])
    with pytest.raises(ConfigError, match="at least two options, got 1"):
        restore_logits(torch.zeros(1, 4), [1])


def test_restored_logits_stand_where_the_user_put_their_option() -> None:
    # The fourth class is one that the row does not have.
    assert restore_logits(torch.tensor([[3.0, 2.0, 1.0, 9.0]]), [3]).tolist() == [[1.0, 2.0, 3.0, 9.0]]


@given(classes=st.integers(2, 6), seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=40)
def test_contrasts_and_covariance_are_those_of_the_restored_logits(
    classes: int, seed: int, data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(2, classes), min_size=1, max_size=4))
    g = torch.Generator().manual_seed(seed)
    q = contrasts(classes)
    logits = 2 * torch.randn(len(counts), classes, generator=g, dtype=F64)
    a = torch.randn(len(counts), classes - 1, classes - 1, generator=g, dtype=F64)
    mean, covariance = logits @ q, a @ a.mT
    got_mean, got_covariance = restore_contrasts(mean, covariance, counts)
    assert got_covariance is not None
    # The truth moves the logits and their centred covariance one by one; a few float64 roundings each.
    torch.testing.assert_close(got_mean, restore_logits(logits, counts) @ q, atol=1e-13, rtol=1e-13)
    full = q @ covariance @ q.T
    for row, c in enumerate(counts):
        at = [*reversed(range(c)), *range(c, classes)]
        torch.testing.assert_close(q @ got_covariance[row] @ q.T, full[row][at][:, at], atol=1e-12, rtol=1e-12)
        # The contrasts of the possible classes never mix with those of the impossible ones.
        alone = restore_contrasts(mean[row : row + 1, : c - 1], covariance[row : row + 1, : c - 1, : c - 1], [c])[1]
        assert alone is not None
        torch.testing.assert_close(got_covariance[row, : c - 1, : c - 1], alone[0], atol=1e-13, rtol=1e-13)
    restored, nothing = restore_contrasts(mean.float(), None, counts)
    assert (nothing, restored.dtype) == (None, F64)
