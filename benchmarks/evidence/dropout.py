"""Members under fixed dropout masks: the trained adapter with columns of its ``lora_A`` dropped.

Dropping input feature i of ``lora_A (mask * x)``, with one mask for all tokens and rows (Gal and Ghahramani, arXiv
1512.05287, section 4.1), multiplies column i of the weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch

from laplora.jacobians.blocks import Block


def dropout_weights(
    lora_a: Mapping[str, torch.Tensor], *, p: float, members: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the ``lora_A`` weights of every member.

    Args:
        lora_a: the trained ones by block name, (rank, in_features).
        p: probability that an input feature is dropped, in (0, 1); the others are divided by 1 - p.
    """
    for member in range(members):
        yield {name: weight * _mask(name, weight.shape[1], p, member, seed) for name, weight in lora_a.items()}


def lora_a_of(blocks: Iterable[Block], weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of the blocks that are a ``lora_A``."""
    return {block.name: weights[block.name] for block in blocks if block.group == "lora_A"}


def _mask(name: str, width: int, p: float, member: int, seed: int) -> torch.Tensor:
    """Return (in_features,) float32, drawn from the seed, the name and the member's number alone."""
    digest = hashlib.sha256(f"{seed}/{member}/{name}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # manual_seed takes 63 bits
    return (torch.rand(width, generator=draw, dtype=torch.float64) >= p).float() / (1 - p)
