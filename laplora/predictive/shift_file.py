"""The shift of the weights on disk: named tensors and back, every shape and value checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.blocks import Block
from laplora.posterior.file import read_tensors
from laplora.predictive.shift import Shift

#: Name of the tensor that every input's contrasts are moved by.
CONSTANT = "constant"


def shift_tensors(shift: Shift) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a shift as named tensors and metadata, for safetensors; float32."""
    named = zip(shift.blocks, shift.weights, strict=True)
    tensors = {block.name: weight.float().contiguous().cpu() for block, weight in named}
    return tensors | {CONSTANT: shift.constant.float().cpu()}, {}


def read_shift(path: Path, blocks: Sequence[Block], directions: int) -> Shift:
    """Return the shift in a file.

    Args:
        directions: of a row's Jacobians.
        blocks: that the posterior covers, of which the shift may move some.

    Raises:
        ArtifactCorruptError: an unreadable file, no blocks or other ones, a wrong shape, or a value that is not finite.
    """
    tensors, _ = read_tensors(path)
    moved = tuple(block for block in blocks if block.name in tensors)
    odd = sorted(set(tensors) ^ {CONSTANT, *(block.name for block in moved)})
    if odd or not moved:
        raise ArtifactCorruptError(f"{path.name} moves {odd[:1] or 'nothing'}, which the posterior does not cover")
    shapes: dict[str, tuple[int, ...]] = {block.name: (block.wide, block.narrow) for block in moved}
    for name, shape in (shapes | {CONSTANT: (directions,)}).items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ArtifactCorruptError(
                f"{path.name}: {name} should be a float tensor of shape {shape}, it is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"{path.name}: {name} holds NaN or infinity")
    return Shift(moved, tuple(tensors[block.name] for block in moved), tensors[CONSTANT])
