"""Bytes of a posterior's file and of what a fit sums, by formula; no tensor is made."""

from __future__ import annotations

from collections.abc import Sequence

from laplora.jacobians.blocks import Block

#: Bytes of a number: bfloat16, in which bases are stored; float32; float64.
_HALF, _SINGLE, _DOUBLE = 2, 4, 8


def posterior_bytes(blocks: Sequence[Block], structure: str, *, rank: int, joint_rank: int = 50) -> int:
    """Return the tensors' bytes in a posterior's file, bases in bfloat16: k times d per block, whatever the rows.

    ``joint_core`` shares its rank out between blocks: exact where all blocks are as wide, more or less elsewhere.
    """
    kept = {b.name: min(rank, b.wide) for b in blocks}
    bases = _HALF * sum(b.wide * kept[b.name] + b.narrow**2 for b in blocks)
    if structure in ("ekfac", "kfac_reduce"):
        return bases + _SINGLE * sum((kept[b.name] + 1) * b.narrow for b in blocks)
    if structure != "joint_core":
        raise ValueError(f"no formula for the structure {structure!r}")
    groups = {b.group for b in blocks}
    coordinates = [sum(kept[b.name] * b.narrow for b in blocks if b.group == group) for group in groups]
    directions = [min(joint_rank, count) for count in coordinates]
    factor = min(joint_rank, sum(directions)) * sum(directions)
    return bases + _HALF * sum(d * c for d, c in zip(directions, coordinates, strict=True)) + _SINGLE * factor


def moment_bytes(blocks: Sequence[Block], rank: int, oversampling: int) -> int:
    """Return the bytes of the sums of ``joint_core``'s first pass, float64; a fit holds the empty ones too.

    They are on the CPU wherever the model is.
    """
    return _DOUBLE * sum(b.wide * min(4 * rank + oversampling, b.wide) + b.narrow**2 for b in blocks)
