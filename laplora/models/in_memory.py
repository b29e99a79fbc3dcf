"""What a model in memory is: the base it was loaded from, and whether its weights are numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from laplora.errors import ModelError
from laplora.models.base import BaseSpec
from laplora.models.offline import offline_name


def base_spec_of(model: Any, name: str | None = None) -> BaseSpec:
    """Return which base model one in memory is, so that it can be loaded again.

    Args:
        model: a causal language model or a classifier, without PEFT's wrapping.
        name: of the base; None: what the model says of itself.

    Raises:
        ModelError: one that was not loaded from a folder or the hub, or in a number format that no artifact has.
    """
    location = name or str(getattr(model.config, "_name_or_path", "") or "")
    if not location:
        raise ModelError(
            "the base model was not loaded from a folder or the hub, and an artifact could not load it again: save it "
            "with save_pretrained and load it from there, or name it with base="
        )
    given = getattr(model.config, "quantization_config", None)
    settings = given if isinstance(given, dict) or given is None else given.to_dict()
    quantization: Literal["nf4", "none"] = getattr(model, "expanded_from", "none")
    if settings is not None:
        is_nf4 = settings.get("load_in_4bit") and settings.get("bnb_4bit_quant_type") == "nf4"
        if not (is_nf4 and settings.get("bnb_4bit_use_double_quant")):
            raise ModelError(
                "an artifact's base is unquantized or in nf4 with double quantization; this model's quantization is "
                "another one: load it with bnb_4bit_quant_type='nf4' and bnb_4bit_use_double_quant=True"
            )
        quantization = "nf4"
    number_format = str(model.dtype).removeprefix("torch.")
    if number_format not in ("bfloat16", "float32"):
        raise ModelError(f"an artifact's base is in bfloat16 or float32, this model is in {number_format}: convert it")
    dtype: Literal["bfloat16", "float32"] = "float32" if number_format == "float32" else "bfloat16"
    known = None if name else offline_name(Path(location))
    revision = None if name or Path(location).is_dir() else getattr(model.config, "_commit_hash", None)
    return BaseSpec(known or location, revision, quantization, dtype)


def non_finite(model: torch.nn.Module) -> str | None:
    """Return the name of a parameter that holds NaN or infinity, the scales of packed 4-bit ones included, or None."""
    for name, parameter in model.named_parameters():
        if not all(bool(values.isfinite().all()) for values in _numbers(parameter)):
            return name
    return None


def _numbers(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return a parameter's values, of a packed one the scales: its codes are always those of numbers.

    Codes may be packed into a floating format (``bnb_4bit_quant_storage``), in which they mean nothing.
    """
    state: Any = getattr(parameter, "quant_state", None)
    if state is None:
        return [parameter] if parameter.is_floating_point() else []
    holders = (state, getattr(state, "state2", None))
    scales = [getattr(holder, name, None) for holder in holders for name in ("absmax", "offset")]
    return [scale for scale in scales if isinstance(scale, torch.Tensor) and scale.is_floating_point()]
