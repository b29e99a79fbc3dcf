"""A question's options in reverse, and its answers brought back to the order the user gave.

A model that answers with the letter of an option also judges the letter and the place (Zheng et al., arXiv
2309.03882; Pezeshkpour and Hruschka, arXiv 2308.11483). Both orders are equal members of a mixture: mean and covariance
are brought back to the user's order here, exactly, and the members' probabilities are averaged, never their logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from laplora.errors import ConfigError, DataError, InvalidInputError
from laplora.linearised import contrasts


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


def restore_contrasts(
    contrast_mean: torch.Tensor, contrast_covariance: torch.Tensor | None, counts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the Gaussian over the contrasts in the user's order, from that of the prompt in reverse.

    With P the permutation of the logits, ``f = P f_shown``, and Q the contrasts, ``T = Q^T P Q`` is orthogonal
    (P maps the ones vector to itself), and the Gaussian becomes ``N(T m, T V T^T)`` exactly.

    Args:
        contrast_mean: (batch, classes - 1), nats.
        contrast_covariance: (batch, classes - 1, classes - 1), nats squared, or None.
        counts: as of ``restore_logits``, which raises the same.

    Returns:
        Mean and covariance, float64, on the device of the mean.
    """
    mean = contrast_mean.double()
    batch, classes = mean.shape[0], mean.shape[1] + 1
    q = contrasts(classes, torch.float64)
    rotation = (q.T @ q[_places(counts, batch, classes)]).to(mean.device)  # (batch, C-1, C-1)
    restored = (rotation @ mean[..., None])[..., 0]
    if contrast_covariance is None:
        return restored, None
    return restored, rotation @ contrast_covariance.to(mean.device, torch.float64) @ rotation.mT


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
