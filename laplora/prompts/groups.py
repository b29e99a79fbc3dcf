"""Rows that belong together: equal questions, or what their user calls a group. Folds and resamples never part them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch

from laplora.prompts.examples import Example
from laplora.prompts.templates import PromptTemplate, render


def question_of(template: PromptTemplate, labels: Sequence[str], example: Example) -> str:
    """Return what two rows share that are the same question: the prompt, up to case and white space."""
    return " ".join(render(template, example.fields, labels)[0].casefold().split())


def grouped(keys: Sequence[Iterable[Hashable]]) -> torch.Tensor:
    """Return (rows,) int64 which group each row is of, from 0 in the order of their first rows.

    Args:
        keys: of each row. Rows that share one are of a group, and so are those that are linked by others.
    """
    parents, first = list(range(len(keys))), dict[Hashable, int]()

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for row, shared in enumerate(keys):
        for key in shared:
            low, high = sorted((root(row), root(first.setdefault(key, row))))
            parents[high] = low
    numbers: dict[int, int] = {}
    return torch.tensor([numbers.setdefault(root(row), len(numbers)) for row in range(len(keys))])


def row_groups(
    template: PromptTemplate, labels: Sequence[str], examples: Sequence[Example], tokens: Sequence[Hashable] = ()
) -> torch.Tensor:
    """Return (rows,) int64 the group of each row: of equal questions, and of the user's groups.

    Args:
        tokens: of each prompt as it is cut, by which prompts are equal too; empty: not.
    """
    keys: list[list[Hashable]] = [[question_of(template, labels, example)] for example in examples]
    for row, example in enumerate(examples):
        keys[row] += [("group", example.group)] if example.group is not None else []
        keys[row] += [("tokens", tokens[row])] if tokens else []
    return grouped(keys)
