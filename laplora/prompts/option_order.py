"""Orders of a question's options, and their answers brought back to the order the user gave.

A model that answers with the letter of an option also judges the letter and the place (Zheng et al., arXiv
2309.03882; Pezeshkpour and Hruschka, arXiv 2308.11483). Each order is one member of a mixture: its mean and covariance
are brought back to the user's order here, exactly, and the members' probabilities are averaged, never their logits.

An order is a tuple of positions: ``order[i]`` is the index, in the user's list, of the option shown at place i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from laplora.errors import ConfigError, DataError, InvalidInputError
from laplora.linearised import contrasts

Order = tuple[int, ...]
#: Whether several orders of the options are averaged: no; yes (``all``); or two, the user's and its reverse.
OrderAverage = bool | Literal["all", "reverse"]


def option_orders(count: int, which: OrderAverage = True) -> tuple[Order, ...]:
    """Return the orders to score, the user's first: all of two or three options, and ``count`` of more.

    ``reverse``: the user's and its reverse alone, of any number of options; without ``which`` the user's.

    Every option stands equally often at every place. Of an even count each also follows each other one equally often
    (Williams, Australian Journal of Scientific Research A 2, 149-168, 1949). Every user's order among those returned
    gives the same set of prompts, so the same average. Raises ConfigError for fewer than two options.
    """
    if count < 2:
        raise ConfigError(f"an order needs at least two options, got {count}")
    if which not in (True, "all"):
        user = tuple(range(count))
        return (user, user[::-1]) if which else (user,)
    zigzag = [(i + 1) // 2 if i % 2 else (count - i // 2) % count for i in range(count)]  # 0, 1, n - 1, 2, n - 2, ...
    rows = [zigzag, [0, 2, 1]] if count == 3 else [zigzag]  # of three both Latin squares: all six orders
    # The options are renamed so that the first order is the user's: the square of its shifts is then a group.
    name = {place: option for option, place in enumerate(zigzag)}
    return tuple(tuple(name[(place + shift) % count] for place in row) for row in rows for shift in range(count))


def order_count(count: int, which: OrderAverage = True) -> int:
    """Return how many orders ``option_orders`` gives, without making any."""
    if which not in (True, "all"):
        return 2 if which else 1
    return 6 if count == 3 else count


def permute_choices(fields: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return the input with its ``choices`` in that order; the other fields as they are.

    Raises InvalidInputError where the input has not as many choices, ConfigError for what is no order.
    """
    count = count_choices(fields)
    _check(order)
    if count != len(order):
        raise InvalidInputError(f"an order of {len(order)} options cannot show {count} choices", field="choices")
    return {**fields, "choices": [fields["choices"][i] for i in order]}


def count_choices(fields: Mapping[str, Any]) -> int:
    """Return how many options an input has; raise InvalidInputError for one without a list of ``choices``."""
    choices = fields.get("choices")
    if choices is None:
        raise InvalidInputError(
            f"order_average reorders the field 'choices', this input has {sorted(map(str, fields))[:8]}: "
            "send a question with choices, or turn order_average off",
            field="choices",
        )
    if isinstance(choices, str) or not isinstance(choices, Sequence):
        raise InvalidInputError("field 'choices' must be a list of strings", field="choices")
    return len(choices)


def restore_logits(logits: torch.Tensor, order: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    """Return (batch, classes) logits, or other values per class, in the user's order, from those in the order shown.

    Args:
        logits: (batch, classes), class i of the option at place i; classes past the row's options stay put.
        order: one for all rows, or one per row.

    Raises:
        ConfigError: not an order.
        DataError: more options than classes, or another number of orders than rows.
    """
    return logits.gather(1, _places(order, *logits.shape).to(logits.device))


def restore_contrasts(
    contrast_mean: torch.Tensor,
    contrast_covariance: torch.Tensor | None,
    order: Sequence[int] | Sequence[Sequence[int]],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the Gaussian over the contrasts in the user's order, from that of the prompt in the order shown.

    With P the permutation of the logits, ``f = P f_shown``, and Q the contrasts, ``T = Q^T P Q`` is orthogonal
    (P maps the ones vector to itself), and the Gaussian becomes ``N(T m, T V T^T)`` exactly.

    Args:
        contrast_mean: (batch, classes - 1), nats.
        contrast_covariance: (batch, classes - 1, classes - 1), nats squared, or None.
        order: as of ``restore_logits``, which raises the same.

    Returns:
        Mean and covariance, float64, on the device of the mean.
    """
    mean = contrast_mean.double()
    batch, classes = mean.shape[0], mean.shape[1] + 1
    q = contrasts(classes, torch.float64)
    rotation = (q.T @ q[_places(order, batch, classes)]).to(mean.device)  # (batch, C-1, C-1)
    restored = (rotation @ mean[..., None])[..., 0]
    if contrast_covariance is None:
        return restored, None
    return restored, rotation @ contrast_covariance.to(mean.device, torch.float64) @ rotation.mT


def _places(order: Sequence[int] | Sequence[Sequence[int]], batch: int, classes: int) -> torch.Tensor:
    """Return (batch, classes) int64: at which place each of the user's options was shown."""
    nested = len(order) > 0 and isinstance(order[0], Sequence)
    orders: list[Any] = list(order) if nested else [order] * batch
    if len(orders) != batch:
        raise DataError(f"expected one order per row, got {len(orders)} orders for {batch} rows")
    places = torch.arange(classes).repeat(batch, 1)
    for row, one in enumerate(orders):
        _check(one)
        if len(one) > classes:
            raise DataError(f"an order of {len(one)} options does not fit {classes} classes")
        places[row, torch.tensor(one)] = torch.arange(len(one))
    return places


def _check(order: Sequence[int]) -> None:
    if len(order) < 2 or sorted(order) != list(range(len(order))):
        raise ConfigError(f"an order must be a permutation of 0 to n - 1 with n >= 2, got {tuple(order)[:16]}")
