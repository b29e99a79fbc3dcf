"""Slices that any task's rows offer: by the values of their fields, their length, and whether they are unfamiliar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from laplora.report.records import Slicing

#: A field with more values than this is no category.
_MOST_VALUES = 12
#: Longest value that is one.
_LONGEST_VALUE = 60
#: Rows that a value has at least; those of rarer ones are one slice.
_FEWEST_ROWS = 5
_REST = "all others"


def slices_of(
    inputs: Sequence[Mapping[str, Any]], tokens: Sequence[int] | None = None, unfamiliar: torch.Tensor | None = None
) -> list[Slicing]:
    """Return the slicings of rows that have two parts or more.

    Args:
        inputs: the template's fields of each row; tokens: of each row's prompt; unfamiliar: (rows,) bool.
    """
    found = [*_by_field(inputs)]
    if tokens is not None:
        found += _by_length(torch.tensor(tokens))
    if unfamiliar is not None:
        names = ("like the training rows", "unfamiliar")
        found.append(Slicing("likeness to the training rows", names, unfamiliar.long()))
    return [one for one in found if len(torch.unique(one.index)) > 1]


def _by_field(inputs: Sequence[Mapping[str, Any]]) -> Iterator[Slicing]:
    for name in inputs[0]:
        values = [row.get(name) for row in inputs]
        if not all(isinstance(value, str) and len(value) <= _LONGEST_VALUE for value in values):
            continue
        counts = Counter(values)
        kept = sorted(str(value) for value, count in counts.items() if count >= _FEWEST_ROWS)
        if not kept or len(counts) > _MOST_VALUES:
            continue
        places = {value: place for place, value in enumerate(kept)}
        yield Slicing(
            f"field {name}",
            (*kept, _REST),
            torch.tensor([places.get(str(value), len(kept)) for value in values]),
            names_are_texts=True,
        )


def _by_length(tokens: torch.Tensor) -> Iterator[Slicing]:
    """Yield quarters of the rows by their prompts' length; fewer where many are as long."""
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    edges = torch.unique(tokens.double().quantile(quarters).floor().long())
    index = torch.bucketize(tokens, edges)
    lows = [int(tokens.min()), *(int(edge) + 1 for edge in edges)]
    highs = [*(int(edge) for edge in edges), int(tokens.max())]
    yield Slicing("length of the prompt", [f"{a} to {b} tokens" for a, b in zip(lows, highs, strict=True)], index)
