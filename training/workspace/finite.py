"""Whether a base model's weights are numbers: a NaN in one of them would come out after hours, as a NaN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from laplora.errors import NonFiniteError


def check_finite(model: nn.Module, name: str) -> None:
    """Check every weight of a model once, the scales of packed 4-bit ones included.

    Args:
        name: the base model's, for the message.

    Raises:
        NonFiniteError: a NaN or an infinity; the message names the weight.
    """
    for parameter, values in _numbers(model):
        if not bool(values.isfinite().all()):
            raise NonFiniteError(
                f"the base model {name!r} holds NaN or infinity in {parameter}: nothing trained on it would be a "
                "number; fetch or convert it again"
            )


def _numbers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for parameter, values in model.named_parameters():
        if values.is_floating_point():
            yield parameter, values.detach()
            continue
        # bitsandbytes packs two codes into a byte, and those are always codes of numbers: a NaN is in their scales.
        state: Any = getattr(values, "quant_state", None)
        for holder in (state, getattr(state, "state2", None)):
            for field in ("absmax", "offset"):
                scale = getattr(holder, field, None)
                if isinstance(scale, torch.Tensor) and scale.is_floating_point():
                    yield parameter, scale
