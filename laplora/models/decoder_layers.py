"""Where a model keeps the layers that its hidden states go through one after another."""

from __future__ import annotations

from typing import Any

from torch import nn

from laplora.errors import ModelError


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return a decoder's or encoder's layers, PEFT's wrapping or not; ModelError where no list holds them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(base, base.base_model_prefix, base)  # a plain encoder is that itself
    count = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    # The second where it also sees or hears, the last ones of encoders.
    inner = (getattr(decoder, name, None) for name in ("language_model", "encoder", "transformer"))
    for part in (decoder, *inner):
        for module in () if part is None else part.children():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
    counted = "layers" if count is None else f"{count} layers"
    raise ModelError(f"{type(base).__name__} keeps its {counted} in no list that could be watched")
