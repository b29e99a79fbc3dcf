"""A base model with its adapter as a run holds them, on the meta device: every shape and number format, no memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from laplora.errors import ModelError, install
from laplora.models.held_weights import keep_4bit_differentiable
from laplora.models.probe import check_targets
from laplora.models.quiet import quiet_loading

Quantization = Literal["nf4", "none"]


def shape_base(settings: Any, *, quantization: Quantization, dtype: torch.dtype) -> Any:
    """Return the causal language model of a transformers configuration on the meta device, frozen, in eval mode.

    Args:
        quantization: ``nf4``: linears are bitsandbytes' 4-bit ones, packed, but for those that transformers leaves
            plain at load (``lm_head``). For weights that are expanded at load say ``none``: they are as large.
        dtype: of what is not packed.
    """
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"), quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers', about settings of its own
        base = make(copy.deepcopy(settings), dtype=dtype, attn_implementation="sdpa")
    if quantization == "nf4":
        _pack(base, dtype)
    base.requires_grad_(False)
    return base.eval()


def shape_model(
    settings: Any,
    *,
    quantization: Quantization,
    dtype: torch.dtype,
    rank: int,
    targets: Sequence[str],
) -> Any:
    """Return ``shape_base`` with a LoRA adapter on it, float32 as PEFT trains it."""
    base = shape_base(settings, quantization=quantization, dtype=dtype)
    check_targets(base, tuple(targets))
    with quiet_loading():
        from peft import LoraConfig, get_peft_model
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
    with torch.device("meta"), quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base, adapter)


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, and of the constants of its 4-bit weights.

    NF4 with double quantization: half a byte a weight, a byte for 64 and four bytes for 16,384. Tied weights count
    once.
    """
    total = sum(buffer.nbytes for buffer in model.buffers())
    for parameter in model.parameters():
        total += parameter.nbytes
        if (state := getattr(parameter, "quant_state", None)) is not None:
            total += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return total


def _pack(base: Any, dtype: torch.dtype) -> None:
    """Put packed linears in place of those that transformers quantizes at load."""
    try:
        with quiet_loading():
            import bitsandbytes
    except ImportError as error:
        raise ModelError(f"nf4 needs bitsandbytes: {install('quantization')}") from error
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    replace_with_bnb_linear(base, get_keys_to_not_convert(base), config)
    layers: Any = bitsandbytes.nn
    quantize = partial(bitsandbytes.functional.quantize_4bit, blocksize=64, compress_statistics=True, quant_type="nf4")
    quantize(torch.zeros(64, 64))  # bitsandbytes keeps its table of codes on the first device that it meets
    for linear in (m for m in base.modules() if isinstance(m, layers.Linear4bit)):
        packed, state = quantize(torch.empty(linear.out_features, linear.in_features, dtype=dtype, device="meta"))
        linear.weight = layers.Params4bit(
            packed, quant_type="nf4", quant_state=state, module=linear, bnb_quantized=True
        )
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.to(dtype), requires_grad=False)
    keep_4bit_differentiable(base)
    base.is_loaded_in_4bit = base.is_quantized = True  # peft dispatches on them
