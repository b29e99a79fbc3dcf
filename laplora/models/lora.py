"""Which LoRA adapters are covered: what their settings must not say, and their layers in a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from laplora.errors import ArtifactCorruptError, ModelError

ADAPTER = "default"

#: Ways to start an adapter that leave the base alone. Others (PiSSA, OLoRA, CorDA, LoftQ) take something out of the
#: base's weights, in place, whenever such an adapter is loaded: every other adapter on that base would change with it.
_HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def check_settings(folder: Path) -> None:
    """Raise unless peft can act on the settings of an adapter's folder without harm.

    Raises:
        ArtifactCorruptError: a rank beyond the adapter's matrices, which peft would allocate.
        ModelError: settings that change the base model's weights or its layers, or name code to import.
        OSError, ValueError, RecursionError, SafetensorError: files that cannot be read.
    """
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError("its settings are no JSON object")
    start = settings.get("init_lora_weights")
    if not any(start is harmless or start == harmless for harmless in _HARMLESS_STARTS):
        raise ModelError(
            f"the adapter is of init_lora_weights {str(start)[:32]!r}, which changes the base model's weights: convert "
            "it with peft's path_initial_model_for_weight_conversion"
        )
    for name in ("megatron_config", "auto_mapping"):
        if settings.get(name):
            raise ModelError(f"the adapter sets {name}, which names code to import: only plain LoRA is covered")
    if settings.get("layer_replication"):
        raise ModelError("the adapter sets layer_replication, which the posterior does not cover")
    pattern = settings.get("rank_pattern") or {}
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as handle:
        names: Any = handle.keys()
        largest = max((size for name in names for size in handle.get_slice(name).get_shape()), default=0)
    if not all(type(rank) is int and rank <= largest for rank in ranks if rank is not None):
        raise ArtifactCorruptError(
            f"the adapter in {folder.name!r} states a rank that its matrices, of {largest} rows or columns at most, "
            "do not have"
        )


def lora_layers(model: Any) -> dict[str, Any]:
    """Return the LoRA layers of a PEFT model by module path in the base model, in module order.

    Raises ModelError where there is none, or parameters were trained that the posterior would not cover (other kinds of
    adapter, DoRA, LoRA biases, adapted embeddings, convolutions, ``modules_to_save``).
    """
    from peft.tuners.lora import LoraLayer

    config = model.peft_config[ADAPTER]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ModelError(f"the adapter is of the kind {kind}; only LoRA is covered")
    for name in ("trainable_token_indices", "target_parameters", "layer_replication"):
        if getattr(config, name, None):
            raise ModelError(f"the adapter sets {name}, which the posterior does not cover")
    if getattr(config, "modules_to_save", None):
        raise ModelError(f"the adapter retrains whole modules ({config.modules_to_save}); only LoRA is covered")
    if config.bias != "none" or getattr(config, "lora_bias", False):
        raise ModelError("the adapter trains biases; set bias='none' and lora_bias=False")
    layers: dict[str, Any] = {}
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if getattr(module, "lora_embedding_A", None):
            raise ModelError(f"{name} is an embedding with LoRA, which the posterior does not cover")
        if ADAPTER not in module.lora_A:
            continue
        if getattr(module, "use_dora", {}).get(ADAPTER) or getattr(module, "lora_variant", {}).get(ADAPTER):
            raise ModelError(f"{name} uses a LoRA variant (such as DoRA), which the posterior does not cover")
        plain = module.get_base_layer()
        if not isinstance(plain, nn.Linear) or not all(
            isinstance(s[ADAPTER], nn.Linear) for s in (module.lora_A, module.lora_B)
        ):
            raise ModelError(f"{name} is a {type(plain).__name__}; only adapted linear layers (nn.Linear) are covered")
        layers[name] = module
    if not layers:
        raise ModelError("the adapter has no LoRA layer on this base model")
    return layers
