"""What the model gave for one task and seed, on disk: every alternative is computed from it without the model.

One file of Jacobians per split, in bfloat16, and one file of small tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians

SPLITS = ("train", "calibration", "test")
#: Rows of a batch that is replayed.
_BATCH = 32


@dataclass(frozen=True)
class StoredSplit:
    """A split's rows as the model saw them.

    Attributes:
        jacobians: (rows, classes - 1, parameters), blocks one after the other, each flattened from (wide, narrow);
            exactly 0 for contrasts with classes that a row cannot have.
        logits: (rows, classes); class_mask: (rows, classes) bool; labels: (rows,) int64.
        extra: Kronecker inputs by name, of the training rows.
    """

    jacobians: torch.Tensor
    logits: torch.Tensor
    class_mask: torch.Tensor
    labels: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def first(self, rows: int) -> StoredSplit:
        """Return the first rows, without their Kronecker inputs."""
        return StoredSplit(self.jacobians[:rows], self.logits[:rows], self.class_mask[:rows], self.labels[:rows])


@dataclass(frozen=True)
class Stores:
    """What was gathered of one task and seed; ``gathered`` is its gathered.json."""

    folder: Path
    gathered: dict[str, Any]
    blocks: tuple[Block, ...]
    train: StoredSplit
    calibration: StoredSplit
    test: StoredSplit


def offsets(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Return the first parameter and the one after the last of each block in the flat order."""
    result, start = [], 0
    for block in blocks:
        result.append((start, start + block.wide * block.narrow))
        start = result[-1][1]
    return result


def read_stores(folder: Path) -> Stores:
    """Return what was gathered in a folder; Jacobians are mapped, not read."""
    gathered = json.loads((folder / "gathered.json").read_text(encoding="utf-8"))
    splits = {}
    for split in SPLITS:
        tensors = load_file(folder / f"{split}.safetensors")
        rows = {name: tensors.pop(name) for name in ("logits", "class_mask", "labels")}
        with safe_open(folder / f"{split}.jacobians.safetensors", framework="pt") as handle:
            splits[split] = StoredSplit(handle.get_tensor("jacobians"), **rows, extra=tensors)
    return Stores(folder, gathered, tuple(Block(**b) for b in gathered["blocks"]), **splits)


def replay(
    split: StoredSplit, blocks: Sequence[Block], only: Sequence[Block]
) -> Iterator[tuple[ContrastJacobians, torch.Tensor]]:
    """Yield some blocks of stored rows as the batches that the model would give, with their class masks, in order."""
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


def read_configuration(folder: Path) -> Any:
    """Return the configuration that a folder's stores were made from, or are being made from; None without any."""
    path = folder / "configuration.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
