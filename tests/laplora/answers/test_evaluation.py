"""What POST /evaluate says of a method's NLL beside temperature scaling's: the difference, with a paired interval."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laplora.answers.evaluation import MethodRow, measure
from laplora.answers.labels import LabelNames, Truth
from service.http.schemas.evaluate import EvaluateOptions, MethodMetrics

ROWS = 60
TWO = LabelNames(("no", "yes"))
HOW = EvaluateOptions(resamples=400)


def rows_of(shift: float) -> list[dict[str, MethodRow]]:
    """Inputs of very different loss, on all of which ``laplace`` is some ``shift`` nats of the logit surer."""
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(ROWS, generator=g, dtype=torch.float64)

    def probs(logit: torch.Tensor) -> list[float]:
        yes = float(logit.sigmoid())
        return [1 - yes, yes]

    methods = {"map": logits + 1, "temperature": logits, "laplace": logits + shift * logits.sign()}
    return [{name: (probs(of[i]), None) for name, of in methods.items()} for i in range(ROWS)]


def truths() -> list[Truth]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (ROWS,), generator=g).tolist()


def test_the_difference_is_paired_and_that_of_the_two_nlls() -> None:
    rows = rows_of(0.1)
    found = measure(rows, truths(), names=TWO, how=HOW)
    over = found["laplace"]["over_temperature"]
    assert over["difference"] == pytest.approx(found["laplace"]["nll"] - found["temperature"]["nll"])
    assert over["low"] < over["difference"] < over["high"]
    low, high = found["laplace"]["intervals"]["nll"]
    assert over["high"] - over["low"] < (high - low) / 5
    assert MethodMetrics.model_validate(found["laplace"]).over_temperature is not None
    # Temperature scaling is not compared with itself, nor anything without it.
    assert found["temperature"]["over_temperature"] is None
    without = [{name: row[name] for name in ("map", "laplace")} for row in rows]
    assert all(of["over_temperature"] is None for of in measure(without, truths(), names=TWO, how=HOW).values())


def test_where_several_labels_may_be_right_whole_inputs_are_drawn() -> None:
    several = LabelNames(("a", "b", "c"), several=True)

    def thrice(row: dict[str, MethodRow]) -> dict[str, MethodRow]:
        return {name: ([probs[1]] * 3, None) for name, (probs, _) in row.items()}  # type: ignore[index]

    answers: Any = [[0, 1, 2] if truth else [] for truth in truths()]  # as JSON has them
    found = measure([thrice(row) for row in rows_of(0.1)], answers, names=several, how=HOW)
    # Three labels that are all right or all wrong tell no more than one: the same inputs are drawn, no more of them.
    once = measure(rows_of(0.1), truths(), names=TWO, how=HOW)
    assert found["laplace"]["over_temperature"] == pytest.approx(once["laplace"]["over_temperature"])
