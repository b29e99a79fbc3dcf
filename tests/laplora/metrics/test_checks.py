"""What metrics and decisions refuse of the tensors that they are given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from laplora.errors import DataError, NonFiniteError
from laplora.metrics.checks import check_columns, checked_column, checked_labels, checked_probs, checked_score
from laplora.metrics.checks import checked_values as values

HALVES, ZERO, MASK = torch.tensor([[0.5, 0.5]]), torch.tensor([0]), torch.ones(1, 2, dtype=torch.bool)
RIGHT = torch.tensor([False])


@pytest.mark.parametrize(
    ("check", "arguments", "error", "message"),
    [
        (checked_column, (torch.zeros(0), "x"), DataError, "x must be .* at least one row"),
        (checked_column, (torch.zeros(3, 1), "x"), DataError, r"x must be .* got \(3, 1\)"),
        (checked_score, (torch.zeros(2), RIGHT), DataError, "score must be"),
        (checked_score, (torch.zeros(1), torch.zeros(1)), DataError, "errors must be bool"),
        (checked_score, (torch.tensor([math.inf]), RIGHT), NonFiniteError, "score holds"),
        (values, (HALVES, MASK[:, :1]), DataError, "same shape"),
        (values, (HALVES, MASK.double()), DataError, "bool mask"),
        (values, (HALVES, ~MASK), DataError, "at least one possible class"),
        (values, (HALVES * math.nan, MASK), NonFiniteError, "a possible class"),
        (checked_labels, (torch.tensor([0, 1]), MASK), DataError, r"labels must be \(1,\)"),
        (checked_labels, (torch.tensor([0.0]), MASK), DataError, "integers"),
        (checked_labels, (ZERO[:0], MASK[:0]), DataError, "at least one row"),
        (checked_labels, (torch.tensor([2]), MASK), DataError, "from 0 to 1"),
        (checked_labels, (torch.tensor([-1]), MASK), DataError, "from 0 to 1"),
        (checked_labels, (torch.tensor([1]), torch.tensor([[True, False]])), DataError, "possible classes"),
        (checked_probs, (torch.ones(1, 1), ZERO), DataError, "two classes or more"),
        (checked_probs, (torch.tensor([[3.0, -1.0]]), ZERO), DataError, "not logits"),
        (checked_probs, (torch.tensor([[math.nan, 1.0]]), ZERO), NonFiniteError, "probs holds"),
    ],
)
def test_what_is_refused(check: Any, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(*arguments)


def test_what_passes_comes_back_in_float64_and_int64() -> None:
    probs, labels = checked_probs(HALVES, torch.tensor([1], dtype=torch.int8))
    assert (probs.dtype, labels.dtype) == (torch.float64, torch.int64)
    impossible = torch.tensor([[1.0, math.nan]])
    assert values(impossible, torch.tensor([[True, False]]))[0].dtype == torch.float64
    check_columns(1, given=ZERO, missing=None)
