"""Models of any architecture with random weights: what memory and time depend on, without a licence or a download."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.harness.shapes import shape_model
from laplora.models.lora import lora_layers, lora_of
from laplora.predictive.batch_outputs import AdaptedModel
from laplora.predictive.lora_weights import lora_parameters
from laplora.readouts.label_tokens import LabelTokens

Quantization = Literal["nf4", "none"]
#: Standard deviation of every weight, as the models' own initialisation.
_SPREAD = 0.02


def random_model(
    settings: Any,
    *,
    device: str,
    quantization: Quantization,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    rank: int = 8,
    classes: int = 2,
) -> AdaptedModel:
    """Return a random bfloat16 model in eval mode with random non-zero LoRA matrices and no posterior.

    Args:
        settings: transformers' configuration.
        quantization: ``nf4`` is double quantization, as ``load_base_model`` reads it, packed.
        targets: of the adapter, float32 as PEFT keeps it, with a scaling of 2.
        classes: labels, tokens 100 and on.
    """
    where = torch.device(device)
    model = shape_model(settings, quantization=quantization, dtype=torch.bfloat16, rank=rank, targets=targets)
    draw = torch.Generator(where).manual_seed(0)
    states: dict[torch.Size, Any] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if hasattr(parameter, "quant_state"):
                module.weight = _packed(module, states, where, draw)
            else:
                setattr(module, name, _plain(name, parameter, where, draw))
    base = model.get_base_model()
    for name, module in list(base.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # rotary embeddings', made of the settings
            base.set_submodule(name, type(module)(base.config).to(where))
    for layer in lora_layers(model).values():
        for side in lora_of(layer).sides.values():
            side.weight.data.normal_(0, _SPREAD, generator=draw)
    model.requires_grad_(False).eval()
    return AdaptedModel(model, lora_parameters(model), LabelTokens(tuple(range(100, 100 + classes))))


def _plain(name: str, shape: torch.Tensor, where: torch.device, draw: torch.Generator) -> nn.Parameter:
    """Return random numbers of a shape; of vectors ones, as norms have them, and biases zeros."""
    values = torch.empty(shape.shape, dtype=shape.dtype, device=where)
    if values.dim() > 1:
        values.normal_(0, _SPREAD, generator=draw)
    else:
        values.fill_(0 if name == "bias" else 1)
    return nn.Parameter(values, requires_grad=False)


def _packed(linear: Any, states: dict[torch.Size, Any], where: torch.device, draw: torch.Generator) -> Any:
    """Return random codes in place of a packed weight's, with the constants of real weights of its shape."""
    import bitsandbytes

    size, like = linear.weight.quant_state.shape, linear.weight
    if size not in states:  # they are the same in kind for all
        real = torch.empty(size, dtype=torch.bfloat16, device=where).normal_(0, _SPREAD, generator=draw)
        states[size] = bitsandbytes.functional.quantize_4bit(
            real, blocksize=64, compress_statistics=True, quant_type="nf4"
        )[1]
    packed: Any = bitsandbytes.nn
    return packed.Params4bit(
        torch.randint(0, 256, like.shape, dtype=torch.uint8, device=where, generator=draw),
        quant_type="nf4",
        quant_state=copy.deepcopy(states[size]),
        module=linear,
        bnb_quantized=True,
    )
