"""What the model gave for one task and seed, on disk: every alternative is computed from it without the model.

One file of Jacobians per split, (rows, classes - 1, parameters) in the model's number format, and one file of small
tensors per split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians


@dataclass(frozen=True)
class StoredSplit:
    """A split's rows as the model saw them.

    Attributes:
        jacobians: (rows, classes - 1, parameters), blocks one after the other, each flattened from (wide, narrow);
            exactly 0 for contrasts with classes that a row cannot have.
        logits: (rows, classes); class_mask: (rows, classes) bool; labels: (rows,) int64.
        label_mass: (rows,).
        hidden: (rows, hidden), the state that the logits were read from.
        extra: further tensors by name, ``logits.<member>`` and, for the training rows, the Kronecker inputs.
    """

    jacobians: torch.Tensor
    logits: torch.Tensor
    class_mask: torch.Tensor
    labels: torch.Tensor
    label_mass: torch.Tensor
    hidden: torch.Tensor
    extra: dict[str, torch.Tensor]


def offsets(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Return the first parameter and the one after the last of each block in the flat order."""
    result, start = [], 0
    for block in blocks:
        result.append((start, start + block.wide * block.narrow))
        start = result[-1][1]
    return result


def read_store(folder: Path, split: str, *, with_jacobians: bool = True) -> StoredSplit:
    """Return one split of a gathered task; the Jacobians are mapped, not read, or empty where they are not wanted."""
    tensors = load_file(folder / f"{split}.safetensors")
    jacobians = torch.empty(0)
    if with_jacobians:
        with safe_open(folder / f"{split}.jacobians.safetensors", framework="pt") as handle:
            jacobians = handle.get_tensor("jacobians")
    own = {k: tensors.pop(k) for k in ("logits", "class_mask", "labels", "label_mass", "hidden")}
    return StoredSplit(jacobians=jacobians, extra=tensors, **own)


def replay(
    split: StoredSplit,
    blocks: Sequence[Block],
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    only: Sequence[Block] | None = None,
) -> Iterator[tuple[ContrastJacobians, torch.Tensor]]:
    """Yield stored rows as the batches that the model would give, with their class masks, in row order.

    Args:
        only: the blocks to give; None: all.
    """
    contrasts = split.jacobians.shape[1]
    wanted = {b.name for b in (blocks if only is None else only)}
    places = [(b, i, span) for i, (b, span) in enumerate(zip(blocks, offsets(blocks), strict=True)) if b.name in wanted]
    for start in range(0, len(split.labels), batch_size):
        rows = slice(start, start + batch_size)
        parts = []
        for block, i, (first, last) in places:
            jacobian = split.jacobians[rows, :, first:last].to(dtype).reshape(-1, contrasts, block.wide, block.narrow)
            inputs, gradients = (
                split.extra[f"{kind}.{i}"][rows].to(dtype) if f"{kind}.{i}" in split.extra else torch.empty(0)
                for kind in ("mean_input", "summed_gradient")
            )
            parts.append(BlockJacobian(jacobian=jacobian, mean_input=inputs, summed_gradient=gradients))
        yield ContrastJacobians(split.logits[rows], split.hidden[rows], tuple(parts)), split.class_mask[rows]


def read_configuration(folder: Path) -> Any:
    """Return the configuration that a folder's stores were made from, or are being made from; None without any."""
    path = folder / "configuration.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_gathered(folder: Path) -> dict[str, Any]:
    """Return the description of a gathered task and seed."""
    found: dict[str, Any] = json.loads((folder / "gathered.json").read_text(encoding="utf-8"))
    return found
