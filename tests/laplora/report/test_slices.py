"""Slices of rows: categories, numbers of choices, quarters by length and what is unfamiliar."""

from __future__ import annotations

import torch

from laplora.report.slices import slices_of


def test_a_field_of_few_values_is_a_slicing_and_a_text_is_none() -> None:
    kinds = ["mail"] * 30 + ["chat"] * 25 + ["fax"] * 2 + ["telex"]
    inputs = [{"text": f"text {i}", "kind": kind, "same": "x"} for i, kind in enumerate(kinds)]
    (found,) = slices_of(inputs)
    assert found.title == "field kind"
    assert found.names_are_texts
    sizes = {name: int((found.index == place).sum()) for place, name in enumerate(found.names)}
    assert sizes == {"chat": 25, "mail": 30, "all others": 3}
    # A value that few rows have, or that is as long as a sentence, may be about somebody.
    inputs = [{"name": "a" * 61 if i % 2 else "b", "who": f"person {i // 4}"} for i in range(40)]
    assert slices_of(inputs) == []


def test_length_has_quarters_and_unfamiliar_rows_are_apart() -> None:
    tokens = list(range(10, 110))
    length, likeness = slices_of([{"text": str(i)} for i in tokens], tokens, torch.tensor(tokens) > 105)
    assert length.names == ["10 to 34 tokens", "35 to 59 tokens", "60 to 84 tokens", "85 to 109 tokens"]
    assert length.index.bincount().tolist() == [25, 25, 25, 25]
    assert likeness.index.bincount().tolist() == [96, 4]
    assert slices_of([{"text": str(i)} for i in range(9)], [7] * 9, torch.zeros(9, dtype=torch.bool)) == []
