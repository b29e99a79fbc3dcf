"""What a decoder's answer costs: floating point operations of its products, bytes of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")


def products(model: Any, rows: int, tokens: int, *, contrasts: int) -> float:
    """Return the floating point operations of an answer's products with the decoder's weights.

    A forward pass, and a reverse pass for each contrast: without the lowest layer's projections to attention, below
    which nothing is adapted, and in the last layer at one token, but for keys and values.
    """
    decoder = model.get_base_model().model
    last = len(decoder.layers) - 1
    total = 0.0
    for number, layer in enumerate(decoder.layers):
        for name, linear in decoder_linears(layer):
            each = 2.0 * rows * linear.in_features * linear.out_features
            back = 1 if number == last and name not in ("k_proj", "v_proj") else tokens
            if number == 0 and name in ATTENTION_INPUTS:
                back = 0
            total += each * (tokens + contrasts * back)
    return total


def decoder_linears(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield a layer's own linears by the last part of their names, adapters left out."""
    for path, module in layer.named_modules():
        linear = getattr(module, "base_layer", module)
        if isinstance(linear, torch.nn.Linear) and "lora_" not in path and not path.endswith("base_layer"):
            yield path.rpartition(".")[2], linear


def weight_bytes(model: Any) -> int:
    """Return the bytes of the decoder layers' weights as they are held, with 4-bit ones' scales."""
    total = 0
    for layer in model.get_base_model().model.layers:
        for _, linear in decoder_linears(layer):
            total += tensor_bytes([linear.weight])
            if (state := getattr(linear.weight, "quant_state", None)) is not None:
                total += tensor_bytes([state.absmax, *([state.state2.absmax] if state.nested else [])])
    return total


def tensor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Return the bytes of some tensors together."""
    return sum(t.nbytes for t in tensors)
