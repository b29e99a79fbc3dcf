"""What experts share: rows are taken and joined column by column, and losses are those of the labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laplora.errors import DataError
from laplora.experts.base import Labelled, Outputs, losses_of


def labelled(count: int = 6) -> Labelled:
    numbers = torch.arange(count)
    mask = torch.ones(count, 3, dtype=torch.bool)
    return Labelled(numbers % 3, mask, numbers // 2, numbers // 2 % 2, numbers > 1)


def test_rows_are_taken_and_joined_in_every_column() -> None:
    draw = torch.Generator().manual_seed(0)
    logs = torch.rand(6, 3, generator=draw).double().log_softmax(1)
    blocks = {"last.2": torch.rand(6, 4, generator=draw), "options": torch.rand(6, 3, 2, generator=draw)}
    given = Outputs(labelled().class_mask, {"adapter": logs}, {"frozen": blocks}, torch.rand(6, 2, 2, generator=draw))
    order = torch.tensor([3, 0, 5])
    some = given.take(order)
    assert torch.equal(some.log_probs["adapter"], logs[order])
    assert torch.equal(some.features["frozen"]["options"], blocks["options"][order])
    joined = Outputs.joined(given.take(torch.arange(6) < 2), given.take(torch.arange(2, 6)))
    assert len(joined) == 6
    for one, other in zip(
        (joined.log_probs["adapter"], *joined.features["frozen"].values(), joined.covariance),
        (logs, *blocks.values(), given.covariance),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert labelled().take(order).labels.tolist() == [0, 0, 2]


def test_losses_are_of_the_labels_and_missing_where_an_answer_is() -> None:
    of, held_out = labelled(), torch.full((6, 3), 0.2, dtype=torch.float64).log()
    held_out[0] = torch.nan
    losses = losses_of(held_out, of)
    assert losses[0].isnan()
    torch.testing.assert_close(losses[1:], torch.full((5,), 0.2).double().log().neg())
    several = replace(of, labels=(torch.arange(18).view(6, 3) % 2), likelihood="bernoulli")
    logits = torch.full((6, 3), 45.0, dtype=torch.float64)  # so sure that a probability of absence would be 0
    expected = (3 - several.labels.sum(1).double()) * 45
    torch.testing.assert_close(losses_of(logits, several), expected, rtol=1e-12, atol=0)


def test_no_fold_parts_a_group() -> None:
    with pytest.raises(DataError, match="different folds"):
        replace(labelled(), folds=torch.arange(6) % 2)
    with pytest.raises(DataError, match="honest has 5 rows, expected the 6"):
        replace(labelled(), honest=torch.ones(5, dtype=torch.bool))
