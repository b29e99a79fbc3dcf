"""The posterior on disk: named tensors and back, every shape and value checked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from laplora.blocks import Block
from laplora.curvature import orthonormalize
from laplora.errors import ArtifactCorruptError
from laplora.posterior import Posterior

_PARTS = ("wide", "narrow", "scale", "tail")


def posterior_tensors(
    posterior: Posterior, factor_dtype: Literal["bfloat16", "float32"]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the posterior as named tensors and metadata, for safetensors.

    ``<block>.wide`` and ``.narrow`` in ``factor_dtype``, ``.scale`` and ``.tail`` in float32. Reading
    orthonormalises the bases again, so the rounding costs no orthogonality.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, block in enumerate(posterior.blocks):
        tensors[f"{block.name}.wide"] = posterior.wide[i].to(getattr(torch, factor_dtype)).contiguous().cpu()
        tensors[f"{block.name}.narrow"] = posterior.narrow[i].to(getattr(torch, factor_dtype)).contiguous().cpu()
        tensors[f"{block.name}.scale"] = posterior.scale[i].float().cpu()
        tensors[f"{block.name}.tail"] = posterior.tail[i].float().cpu()
    return tensors, {"rows": str(posterior.rows), "factor_dtype": factor_dtype}


def read_posterior(path: Path, blocks: tuple[Block, ...]) -> Posterior:
    """Return the posterior in a file, for the blocks of the loaded adapter, float64 on the CPU.

    Raises:
        ArtifactCorruptError: an unreadable file, a block missing or left over, a wrong shape, a value that
            is not finite, a negative curvature, or a basis that is not orthonormal.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{path.name} cannot be read as safetensors: {error}") from None
    expected = {f"{b.name}.{p}" for b in blocks for p in _PARTS}
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)
        raise ArtifactCorruptError(
            f"{path.name} and the adapter name different tensors, {len(odd)} in all, such as {odd[0]!r}"
        )
    if not metadata.get("rows", "").isdecimal():
        raise ArtifactCorruptError(f"{path.name} does not say how many rows its curvature sums")
    parts: dict[str, list[torch.Tensor]] = {p: [] for p in _PARTS}
    for block in blocks:
        one = {p: tensors[f"{block.name}.{p}"] for p in _PARTS}
        _check_block(path.name, block, one)
        parts["wide"].append(_basis(path.name, block, one["wide"]))
        parts["narrow"].append(_basis(path.name, block, one["narrow"]))
        parts["scale"].append(one["scale"].double())
        parts["tail"].append(one["tail"].double())
    wide, narrow, scale, tail = (tuple(parts[p]) for p in _PARTS)
    return Posterior(blocks, wide, narrow, scale, tail, int(metadata["rows"]))


def _check_block(file: str, block: Block, one: dict[str, torch.Tensor]) -> None:
    kept = max(one["wide"].shape[-1], 1) if one["wide"].dim() == 2 else -1
    shapes = {
        "wide": (block.wide, kept),
        "narrow": (block.narrow, block.narrow),
        "scale": (kept, block.narrow),
        "tail": (block.narrow,),
    }
    for part, shape in shapes.items():
        if tuple(one[part].shape) != shape or not one[part].is_floating_point():
            raise ArtifactCorruptError(
                f"{file}: {block.name}.{part} should be a float tensor of shape {shape}, "
                f"it is {one[part].dtype} {tuple(one[part].shape)}"
            )
        if not bool(one[part].isfinite().all()):
            raise ArtifactCorruptError(f"{file}: {block.name}.{part} holds NaN or infinity")
    for part in ("scale", "tail"):
        if bool((one[part] < 0).any()):
            raise ArtifactCorruptError(f"{file}: {block.name}.{part} holds a negative curvature")


def _basis(file: str, block: Block, stored: torch.Tensor) -> torch.Tensor:
    vectors = stored.double()
    identity = torch.eye(vectors.shape[1], dtype=torch.float64)
    # bfloat16 keeps 8 bits, so columns of unit length come back within about 1e-2 of orthonormal.
    if float((vectors.T @ vectors - identity).abs().max()) > 0.05:
        raise ArtifactCorruptError(f"{file}: a basis of {block.name} is not orthonormal")
    return orthonormalize(stored)
