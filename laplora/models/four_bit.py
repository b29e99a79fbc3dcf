"""Weights in 4 bits (bitsandbytes): kept differentiable, or replaced by their dequantized values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def keep_4bit_differentiable(model: Any) -> None:
    """Turn off bitsandbytes' inference-only weight layout, in place.

    After a forward without gradient on a CPU with AVX512-BF16, it silently yields no gradient (bitsandbytes 0.50).
    """
    for module in packed_linears(model).values():
        module.support_avx512bf16_for_cpu = False


def packed_linears(model: Any) -> dict[str, Any]:
    """Return the bitsandbytes 4-bit linears by module path."""
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def expanded_bytes(model: Any, dtype: torch.dtype) -> int:
    """Return the bytes that the 4-bit weights take once expanded."""
    entries: int = sum(m.in_features * m.out_features for m in packed_linears(model).values())
    return entries * dtype.itemsize


def dequantize_linears(model: Any, dtype: torch.dtype) -> None:
    """Replace each bitsandbytes 4-bit linear by a plain one holding the dequantized weight, in place."""
    for name in list(packed_linears(model)):  # names only: each packed weight is freed when its replacement is there
        module = model.get_submodule(name)
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(plain_weight(module, dtype), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    # transformers and peft dispatch on these two marks, and the weights are plain now.
    model.is_loaded_in_4bit = False
    model.is_quantized = False
    model.expanded_from = "nf4"  # what an artifact says of it
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def plain_weight(linear: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a linear's weight (out, in), expanded where it is in 4 bits."""
    weight: Any = linear.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    result: torch.Tensor = weight.to(dtype)
    return result
