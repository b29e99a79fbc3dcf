"""What a posterior's blocks are worth: each block's trained weight, in memory or in a file, and how far it moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from laplora.errors import ModelError
from laplora.jacobians.blocks import Block
from laplora.models.classifier_head import head_weights, is_adapted
from laplora.models.lora import lora_layers, lora_of


def trained_weights(model: Any, trained: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Return the trained tensors of a model by the names that PEFT saves them under, detached.

    Args:
        trained: paths of the head's trained linears (``ReadOut.trained``). Without an adapter they are all.
    """
    layers = lora_layers(model) if is_adapted(model) or not trained else {}
    lora = {
        f"base_model.model.{name}.{side}.weight": linear.weight.detach()
        for name, layer in layers.items()
        for side, linear in lora_of(layer).sides.items()
    }
    heads = head_weights(model, trained)
    return lora | {f"base_model.model.{name}": weight.detach() for name, weight in heads.items()}


def squared_distances(
    blocks: Sequence[Block], end: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """Return each block's squared Frobenius distance from its initial value, (blocks,) float64.

    PEFT starts ``lora_A`` at random, so its norm itself is no evidence. The whole ``lora_B`` of ``lm_head`` counts.

    Args:
        end, start: trained and initial tensors by the names of ``trained_weights``, or of a head's file. None, and a
            head that ``start`` does not have: its prior is centred at zero.

    Raises:
        ModelError: a block that ``end`` does not have, or an initial value of another shape.
    """
    return torch.stack([_squared_distance(block, end, start or {}) for block in blocks])


def _squared_distance(block: Block, end: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> torch.Tensor:
    stem = block.name.removesuffix(".head") if block.group == "head" else block.name
    stored = [f"base_model.model.{stem}.{kind}" for kind in ("weight", "bias")] + [f"{stem}.weight", f"{stem}.bias"]
    total, found = torch.zeros((), dtype=torch.float64), False
    for name in stored:
        if (tensor := end.get(name)) is None:
            continue
        found, moved, first = True, tensor.detach().double().cpu(), start.get(name)
        if first is not None and first.shape != tensor.shape:
            raise ModelError(f"{name} started with the shape {tuple(first.shape)} and has {tuple(tensor.shape)} now")
        total += (moved if first is None else moved - first.detach().double().cpu()).square().sum()
    if not found:
        raise ModelError(f"the trained weights hold nothing of {block.name}: give those of the same adapter")
    return total
