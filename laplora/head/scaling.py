"""Standardised features: each block centred, divided by its spread and by the root of its width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from laplora.head.errors import HeadError
from laplora.head.rows import Rows

#: Rows that are copied as float64 at a time.
CHUNK = 8192


@dataclass(frozen=True)
class Scaling:
    """Mean and factor of each feature, by block, (width,) float64; the factor of a constant feature is 0.

    The factor is ``1 / (std sqrt(width))``, so that a block whose weights have variance v adds about v to the variance
    of a logit, however wide it is. Features of options are centred over a question's possible options instead.
    """

    means: Mapping[str, torch.Tensor]
    factors: Mapping[str, torch.Tensor]

    @staticmethod
    def of(rows: Rows) -> Scaling:
        moments = {name: _moments(block, rows.class_mask) for name, block in rows.blocks.items()}
        return Scaling(*({name: each[place] for name, each in moments.items()} for place in (0, 1)))

    def apply(
        self, name: str, block: torch.Tensor, class_mask: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the block standardised, (rows, width); of options (rows * options, width); float64, or in ``out``.

        Raises:
            HeadError: another width than the scaling's.
        """
        mean, factor = self.means[name], self.factors[name]
        if block.shape[-1] != len(mean):
            raise HeadError(f"block {name!r} must have width {len(mean)}, got {tuple(block.shape)}")
        each = block.shape[1] if block.ndim == 3 else 1
        whole = torch.empty(len(block) * each, len(mean), dtype=torch.float64) if out is None else out
        for start in range(0, len(block), CHUNK):
            part = slice(start, start + CHUNK)
            scaled = (_centred(block[part], class_mask[part]) - mean) * factor
            whole[start * each : (start + CHUNK) * each] = scaled.reshape(-1, len(mean))
        return whole


def _centred(block: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
    """Return a few rows as float64; features of options less their mean over the possible ones, 0 at the others."""
    values = block.double()
    if values.ndim == 2:
        return values
    possible = class_mask[:, :, None]
    values = values * possible
    return (values - values.sum(1, keepdim=True) / possible.sum(1, keepdim=True)) * possible


def _moments(block: torch.Tensor, class_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    width, options = block.shape[-1], block.ndim == 3
    mean, square, largest = (torch.zeros(width, dtype=torch.float64) for _ in range(3))
    count = int(class_mask.sum()) if options else len(block)
    parts = [slice(start, start + CHUNK) for start in range(0, len(block), CHUNK)]
    for part in parts if not options else ():  # options are centred by question
        mean += block[part].double().sum(0) / count
    for part in parts:
        square += (_centred(block[part], class_mask[part]) - mean).square().reshape(-1, width).sum(0) / count
        largest = torch.maximum(largest, block[part].double().abs().reshape(-1, width).amax(0))
    std = square.sqrt()
    constant = std <= 10 * torch.finfo(block.dtype).eps * largest
    return mean, torch.where(constant, 0.0, 1 / (std.masked_fill(constant, 1) * width**0.5))
