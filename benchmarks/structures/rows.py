"""What the model gave for some rows: every structure is fitted and measured on it without the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians

#: Rows of a batch that is replayed.
_BATCH = 32


@dataclass(frozen=True)
class SplitRows:
    """A split's rows as the model saw them.

    Attributes:
        jacobians: (rows, classes - 1, parameters) bfloat16, blocks one after the other, each flattened from (wide,
            narrow); exactly 0 for contrasts with classes that a row cannot have.
        logits: (rows, classes); class_mask: (rows, classes) bool; labels: (rows,) int64.
        extra: Kronecker inputs by name, of the training rows.
    """

    jacobians: torch.Tensor
    logits: torch.Tensor
    class_mask: torch.Tensor
    labels: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Gathered:
    """A trained model's rows, and the blocks that their Jacobians are of."""

    blocks: tuple[Block, ...]
    train: SplitRows
    calibration: SplitRows
    test: SplitRows


def offsets(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Return the first parameter and the one after the last of each block in the flat order."""
    result, start = [], 0
    for block in blocks:
        result.append((start, start + block.wide * block.narrow))
        start = result[-1][1]
    return result


def replay(
    split: SplitRows, blocks: Sequence[Block], only: Sequence[Block]
) -> Iterator[tuple[ContrastJacobians, torch.Tensor]]:
    """Yield some blocks of a split's rows as the batches that the model would give, with their class masks."""
    contrasts = split.jacobians.shape[1]
    places = [(b, i, span) for i, (b, span) in enumerate(zip(blocks, offsets(blocks), strict=True)) if b in only]
    for start in range(0, len(split.labels), _BATCH):
        rows = slice(start, start + _BATCH)
        parts = []
        for block, i, (first, last) in places:
            jacobian = split.jacobians[rows, :, first:last].float().reshape(-1, contrasts, block.wide, block.narrow)
            sums = (split.extra.get(f"{kind}.{i}") for kind in ("mean_input", "summed_gradient"))
            parts.append(BlockJacobian(jacobian, *(None if s is None else s[rows].float() for s in sums)))
        yield ContrastJacobians(split.logits[rows], torch.empty(0), tuple(parts)), split.class_mask[rows]
