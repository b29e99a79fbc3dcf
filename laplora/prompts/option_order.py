"""A question's options in reverse, and its answers brought back to the order the user gave.

A model that answers with the letter of an option also judges the letter and the place (Zheng et al., arXiv
2309.03882; Pezeshkpour and Hruschka, arXiv 2308.11483). Both orders are equal members of a mixture: logits are
brought back to the user's order here, and the members' probabilities are averaged, never their logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from laplora.errors import ConfigError, DataError, InvalidInputError


def reverse_choices(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input with its ``choices`` in reverse; the other fields as they are.

    Raises InvalidInputError for an input without a list of ``choices``.
    """
    choices = fields.get("choices")
    if choices is None:
        raise InvalidInputError(
            f"order_average reorders the field 'choices', this input has {sorted(map(str, fields))[:8]}: "
            "send a question with choices, or turn order_average off",
            field="choices",
        )
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise InvalidInputError("field 'choices' must be a list of strings", field="choices")
    return {**fields, "choices": list(choices)[::-1]}


def restore_logits(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return (batch, classes) logits, or other values per class, in the user's order, from prompts in reverse.

    Args:
        logits: (batch, classes), class i of the option at place i.
        counts: options of each row; the classes past them stay put.

    Raises:
        ConfigError: fewer than two options.
        DataError: more options than classes, or another number of counts than rows.
    """
    return logits.gather(1, _places(counts, *logits.shape).to(logits.device))


def _places(counts: Sequence[int], batch: int, classes: int) -> torch.Tensor:
    """Return (batch, classes) int64: at which place each of the user's options was shown."""
    if len(counts) != batch:
        raise DataError(f"expected a count of options for each row, got {len(counts)} for {batch} rows")
    if min(counts, default=2) < 2:
        raise ConfigError(f"an order needs at least two options, got {min(counts)}")
    if max(counts, default=2) > classes:
        raise DataError(f"an order of {max(counts)} options does not fit {classes} classes")
    places = torch.arange(classes).repeat(batch, 1)
    last = torch.tensor(list(counts), dtype=torch.int64)[:, None] - 1
    return torch.where(places <= last, last - places, places)
