"""The one error of this package, which imports nothing of laplora."""

from __future__ import annotations

import torch


class HeadError(ValueError):
    """Features, labels or settings that no head can be fitted on: what was expected, what came, what to do."""


def check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise HeadError for a tensor of another shape or type."""
    if tensor.shape != shape or tensor.dtype != dtype:
        raise HeadError(f"{name} must be {shape} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}")
