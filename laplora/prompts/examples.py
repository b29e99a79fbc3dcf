"""A labelled input, as every source of rows is turned into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laplora.linearised import targets_of


@dataclass(frozen=True)
class Example:
    """One labelled input.

    Attributes:
        id: as the row has it, or the place it was read from; unique unless a user's ids repeat.
        fields: exactly the template's fields; ``choices`` is a tuple of strings, all others are strings.
        label: index into the task's labels, below ``class_count``; -1 where there is none, or may be several.
        class_count: how many of the task's labels, from the first, are possible answers.
        present: the indices of all right labels, ascending, where several may be right; None where one is.
        target: of a soft label the probability of each of the task's labels, of which ``label`` is the most probable,
            the first of equal ones; None of one that is certain.
        group: what it shares with the rows that no fold or split may part from it; None: its prompt alone.
    """

    id: str
    fields: Mapping[str, Any]
    label: int
    class_count: int
    present: tuple[int, ...] | None = None
    group: str | None = None
    target: tuple[float, ...] | None = None

    @property
    def truth(self) -> int | tuple[float, ...]:
        """The label's place, or probabilities by label of a soft one; the places of several (``answers.labels``)."""
        return self.target or (self.label if self.present is None else self.present)


def label_tensor(examples: Sequence[Example], classes: int) -> torch.Tensor:
    """Return labels as (rows,) int64; if one is soft, as (rows, classes) float64, the probabilities of each row.

    If several may be right, they are (rows, classes) int64, 1 at those that are.
    """
    if all(example.present is None for example in examples):
        labels = torch.tensor([example.label for example in examples])
        if all(example.target is None for example in examples):
            return labels
        soft = targets_of(labels, classes)
        for row, example in enumerate(examples):
            if example.target is not None:
                soft[row] = torch.tensor(example.target, dtype=torch.float64)
        return soft
    labels = torch.zeros(len(examples), classes, dtype=torch.int64)
    for row, example in enumerate(examples):
        labels[row, list(example.present or ())] = 1
    return labels
