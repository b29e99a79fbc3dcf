"""A labelled input, as every source of rows is turned into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Example:
    """One labelled input.

    Attributes:
        id: as the row has it, or the place it was read from; unique unless a user's ids repeat.
        fields: exactly the template's fields; ``choices`` is a tuple of strings, all others are strings.
        label: index into the task's labels, below ``class_count``; -1 where there is none.
        class_count: how many of the task's labels, from the first, are possible answers.
    """

    id: str
    fields: Mapping[str, Any]
    label: int
    class_count: int
