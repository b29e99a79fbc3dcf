"""Activations that are computed again on the way back, in place of being kept: less memory, more time."""

from __future__ import annotations

from typing import Any

#: For Trainer and model alike: the other form does not take part in every derivative.
RECOMPUTING = {"use_reentrant": False}


def recompute_activations(model: Any) -> None:
    """Let a PEFT model's base compute its layers' activations again in the backward passes of training."""
    base = model.get_base_model()
    # Newer versions of transformers call it otherwise, and warn of the older name.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable(RECOMPUTING)
