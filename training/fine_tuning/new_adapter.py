"""A fresh LoRA adapter, as a configuration describes it, and activations that are computed again, not kept."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from laplora.models.lora import adapter_name
from laplora.models.probe import check_adapted, check_targets
from laplora.models.quiet import quiet_loading
from training.config import RunConfig

#: For Trainer and model alike: the other form does not take part in every derivative.
RECOMPUTING = {"use_reentrant": False}


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


def recompute_activations(model: Any) -> None:
    """Let a PEFT model's base compute its layers' activations again in the backward passes of training."""
    base = model.get_base_model()
    # Newer versions of transformers call it otherwise, and warn of the older name.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable(RECOMPUTING)
