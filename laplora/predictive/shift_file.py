"""Shifts on disk: named tensors and back, every shape and value checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from laplora.errors import ArtifactCorruptError
from laplora.posterior.file import read_tensors
from laplora.predictive.kinds import Corrected
from laplora.predictive.shift import Shift

_PARTS = ("weights", "constant")


def shift_tensors(shifts: Mapping[Corrected, Shift]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return shifts as named tensors and metadata, for safetensors; float32."""
    named = {f"{kind}.{part}": getattr(shift, part) for kind, shift in shifts.items() for part in _PARTS}
    return {name: tensor.float().contiguous().cpu() for name, tensor in named.items()}, {}


def read_shifts(
    path: Path, temperatures: Mapping[Corrected, float], width: int, directions: int
) -> dict[Corrected, Shift]:
    """Return the shifts in a file, in float64.

    Args:
        temperatures: by predictive that the artifact corrects.
        width: of the state that the logits are read from; directions: those of the likelihood.

    Raises:
        ArtifactCorruptError: an unreadable file, a tensor missing or left over, of another shape, or not finite.
    """
    tensors, _ = read_tensors(path)
    if odd := sorted(set(tensors) ^ {f"{kind}.{part}" for kind in temperatures for part in _PARTS}):
        raise ArtifactCorruptError(f"{path.name} and the manifest name different shifts, such as {odd[0]!r}")
    for name, tensor in tensors.items():
        shape = (width, directions) if name.endswith(".weights") else (directions,)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"{path.name}: {name} should be finite numbers of shape {shape}")
    return {
        kind: Shift(tensors[f"{kind}.weights"].double(), tensors[f"{kind}.constant"].double(), temperature)
        for kind, temperature in temperatures.items()
    }
