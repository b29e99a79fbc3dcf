"""The members of an MC-dropout predictive: adapters whose lora_A columns are under fixed dropout masks.

Dropping input feature i of ``lora_A (mask * x)``, with one mask for all tokens and rows (Gal and Ghahramani, arXiv
1512.05287, section 4.1), multiplies column i of the weight. So a member is an adapter like any other: serving it needs
no random state, and an answer does not depend on its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block

#: Most members that an artifact may have: each is a copy of every lora_A in memory.
MOST_MEMBERS = 256


def dropout_masks(blocks: Iterable[Block], p: float, members: int, seed: int) -> dict[str, torch.Tensor]:
    """Return by name the masks (members, in_features) float32 of every lora_A: 0 with probability p, else 1 / (1 - p).

    A mask is drawn from the seed, the name and the member's number alone.

    Args:
        blocks: those that are no ``lora_A`` get no mask.
        p: probability that an input feature is dropped, in (0, 1).

    Raises:
        ConfigError: p outside (0, 1), no members, or no lora_A at all.
    """
    if not 0 < p < 1:
        raise ConfigError(f"the dropout probability is in (0, 1), got {p}: without dropout every member is the adapter")
    if members < 1:
        raise ConfigError(f"MC dropout needs at least one member, got {members}")
    masks = {}
    for block in blocks:
        if block.group == "lora_A":
            drawn = torch.stack([_uniform(seed, block.name, member, block.wide) for member in range(members)])
            masks[block.name] = (drawn >= p).float() / (1 - p)
    if not masks:
        raise ConfigError("no lora_A was given: there is nothing to drop")
    return masks


def member_weights(
    lora_a: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor], member: int
) -> dict[str, torch.Tensor]:
    """Return one member's lora_A weights by name, each (rank, in_features) in its dtype and on its device.

    Args:
        lora_a: the trained weights (rank, in_features) by name; they are not changed.
        masks: from ``dropout_masks``, under the same names.
        member: from 0.

    Raises:
        ConfigError: names or widths that do not agree, or no such member.
    """
    if lora_a.keys() != masks.keys():
        differing = sorted(lora_a.keys() ^ masks.keys())
        raise ConfigError(f"weights and masks must have the same names, these differ: {differing[:4]}")
    weights = {}
    for name, weight in lora_a.items():
        mask = masks[name]
        if mask.shape[1:] != weight.shape[1:] or not 0 <= member < len(mask):
            raise ConfigError(
                f"{name!r} needs member {member} of masks {weight.shape[1]} wide, got {tuple(mask.shape)}"
            )
        weights[name] = weight.detach() * mask[member].to(weight.device, weight.dtype)
    return weights


def _uniform(seed: int, name: str, member: int, size: int) -> torch.Tensor:
    """Return (size,) uniform numbers, float64."""
    digest = hashlib.sha256(f"{seed}/{member}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # manual_seed takes 63 bits
    return torch.rand(size, generator=generator, dtype=torch.float64)
