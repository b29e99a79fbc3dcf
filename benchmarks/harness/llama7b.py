"""Llama-2-7B's shapes with random weights: what memory and time depend on, without the licence or the download.

4-bit weights are drawn as codes: uniform ones are roughly normal weights, and no wider copy of them ever exists.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal

import torch
from torch import nn

from laplora.models.four_bit import keep_4bit_differentiable
from laplora.models.lora import lora_layers, lora_of
from laplora.models.quiet import quiet_loading
from laplora.predictive.member_adapters import lora_parameters
from laplora.predictive.member_outputs import Member, MemberSet
from laplora.readouts.label_tokens import LabelTokens

Quantization = Literal["nf4", "none"]
#: Arguments of a LlamaConfig: what Touvron et al. (arXiv 2307.09288) train.
LLAMA_2_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
#: Standard deviation of every weight, as Llama's own initialisation.
_SPREAD = 0.02


def random_llama(
    layers: int = 32,
    *,
    device: str,
    quantization: Quantization,
    rank: int = 8,
    classes: int = 2,
    shape: dict[str, Any] = LLAMA_2_7B,
) -> MemberSet:
    """Return a random bfloat16 Llama in eval mode with random non-zero LoRA matrices; its member has no posterior.

    Args:
        quantization: of the decoder's linears; ``nf4`` is double quantization, as ``load_base_model`` reads it, packed.
        rank: of the adapter of queries and values, float32 as PEFT keeps it; its scaling is 2.
        classes: labels, tokens 100 and on.
        shape: arguments of the ``LlamaConfig``.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    with quiet_loading():
        from peft import LoraConfig, get_peft_model

    where = torch.device(device)
    config = LlamaConfig(**shape, num_hidden_layers=layers, tie_word_embeddings=False, use_cache=False)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    draw = torch.Generator(where).manual_seed(0)
    if quantization == "nf4":
        _fill_4bit(base.model.layers, where, draw)
    _fill_plain(base, where, draw)
    base.model.rotary_emb = type(base.model.rotary_emb)(config).to(where)
    base.requires_grad_(False)
    if quantization == "nf4":
        keep_4bit_differentiable(base)
        base.is_loaded_in_4bit = base.is_quantized = True  # peft dispatches on them
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(base, adapter)
    for layer in lora_layers(model).values():
        for side in lora_of(layer).sides.values():
            side.weight.data.normal_(0, _SPREAD, generator=draw)
    model.requires_grad_(False).eval()
    return MemberSet(model, lora_parameters(model), LabelTokens(tuple(range(100, 100 + classes))), Member())


def _fill_plain(base: Any, where: torch.device, draw: torch.Generator) -> None:
    """Put random numbers in place of every parameter that is still without storage; norms are ones."""
    for name, parameter in list(base.named_parameters()):
        if parameter.is_meta:
            values = torch.ones(parameter.shape, dtype=parameter.dtype, device=where)
            if parameter.dim() > 1:
                values.normal_(0, _SPREAD, generator=draw)
            path, _, child = name.rpartition(".")
            setattr(base.get_submodule(path), child, nn.Parameter(values, requires_grad=False))


def _fill_4bit(decoder: nn.Module, where: torch.device, draw: torch.Generator) -> None:
    """Put packed linears in place of the plain ones."""
    import bitsandbytes

    states: dict[torch.Size, Any] = {}
    linears = [(name, module) for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    for name, plain in linears:
        size = plain.weight.shape
        if size not in states:  # constants of real weights of that shape: they are the same in kind for all
            real = torch.empty(size, dtype=torch.bfloat16, device=where).normal_(0, _SPREAD, generator=draw)
            states[size] = bitsandbytes.functional.quantize_4bit(
                real, blocksize=64, compress_statistics=True, quant_type="nf4"
            )
        packed, state = states[size]
        linear = bitsandbytes.nn.Linear4bit(
            size[1], size[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta"
        )
        linear.weight = bitsandbytes.nn.Params4bit(
            torch.randint(0, 256, packed.shape, dtype=torch.uint8, device=where, generator=draw),
            quant_type="nf4",
            quant_state=copy.deepcopy(state),
            module=linear,
            bnb_quantized=True,
        )
        path, _, child = name.rpartition(".")
        setattr(decoder.get_submodule(path), child, linear)
