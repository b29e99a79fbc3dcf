"""A fresh LoRA adapter, as a configuration describes it."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from laplora.models.lora import adapter_name
from laplora.models.probe import check_adapted, check_targets
from laplora.models.quiet import quiet_loading
from training.config import RunConfig


def add_adapter(base: nn.Module, config: RunConfig) -> Any:
    """Return the base model with a fresh LoRA adapter, adapter weights in float32.

    Raises:
        ModelError: a target that names no linear module, as on models with fused projections, or one that does not run
            once on every token of a text.
    """
    adapter = config.adapter
    check_targets(base, adapter.targets)
    settings = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        target_modules=list(adapter.targets),
        task_type="CAUSAL_LM",
    )
    with quiet_loading():
        model = get_peft_model(base, settings)
    model.peft_config[adapter_name(model)].base_model_name_or_path = config.base.model
    model.eval()  # dropout would draw from the generator that training draws from
    check_adapted(model)
    return model
