"""Other weights for the adapter of a model, put in its place.

They are LoRA weights by block name. Putting them in place copies nothing: the parameters point at its
tensors until the block ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laplora.errors import ArtifactCorruptError, ConfigError
from laplora.models.adapters import verify_adapter
from laplora.models.classifier_head import head_linear, is_adapted, trained_linears
from laplora.models.lora import adapter_name, is_classifier, lora_layers, lora_of
from laplora.models.readout import base_of

#: LoRA weights by block name, each of the shape, dtype and device that the model has them in.
Weights = Mapping[str, torch.Tensor]


def lora_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Return every LoRA matrix of a PEFT model by block name, as (out, in) parameters, in module order.

    After them come the weights and biases of a trained head by their names in the base. Without an adapter, these are
    all.
    """
    classifies = is_classifier(base_of(model))
    layers = lora_layers(model) if is_adapted(model) or not classifies else {}
    weights = {
        f"{name}.{side}": linear.weight
        for name, layer in layers.items()
        for side, linear in lora_of(layer).sides.items()
    }
    for path in trained_linears(model) if classifies else ():
        weights |= {f"{path}.{kind}": value for kind, value in head_linear(model, path).named_parameters(recurse=False)}
    return weights


def weight_checksums(parameters: Weights) -> dict[str, int]:
    """Return by block name a number that changes with any bit of a tensor, in one pass over it where it is.

    Each element's bits count by an odd number that says its place: one that changes, or two that change places, always
    show. Many at once go unseen by a chance of about 2^-64.
    """
    checksums = {}
    for name, parameter in parameters.items():
        tensor = parameter.detach().flatten()
        bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
        odd = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        checksums[name] = (bits * odd).sum()
    return {name: int(number) for name, number in checksums.items()}


def read_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of an adapter on disk, ready to take the place of the model's.

    Raises:
        ArtifactCorruptError: files that cannot be read, other settings or modules than the model's adapter has,
            or values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = f"{folder.parent.name}/{folder.name}"
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        parameters = lora_parameters(model)
        heads = [name for name in parameters if not name.endswith((".lora_A", ".lora_B"))]
        verify_adapter(folder, lora_layers(model), heads)
        stored = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactCorruptError(f"the adapter in {name} cannot be read: {type(error).__name__}") from None
    config = model.peft_config[adapter_name(model)]
    differing = [k for k in ("r", "lora_alpha", "use_rslora") if settings.get(k) != getattr(config, k)]
    if differing:
        raise ArtifactCorruptError(f"the adapter in {name} has another {differing[0]} than the artifact")
    weights = {}
    for block, parameter in parameters.items():
        tensor = stored[f"base_model.model.{block}" + ("" if block in heads else ".weight")]
        if tensor.shape != parameter.shape:
            raise ArtifactCorruptError(
                f"the adapter in {name}: {block} should be {tuple(parameter.shape)}, it is {tuple(tensor.shape)}"
            )
        weights[block] = tensor.to(parameter.device, parameter.dtype)
    return weights


@contextmanager
def in_place(parameters: Mapping[str, nn.Parameter], weights: Weights) -> Iterator[None]:
    """Give a model's ``lora_parameters`` these weights inside the block, and their former ones back after it.

    Also after an error. Not for two threads at once: both would see the same weights.

    Raises:
        ConfigError: a block that the model does not have, or a weight of another shape, dtype or device.
    """
    for name, weight in weights.items():
        old = parameters.get(name)
        if old is None or (old.shape, old.dtype, old.device) != (weight.shape, weight.dtype, weight.device):
            raise ConfigError(f"the weights of {name!r} do not fit this model's adapter")
    former = {name: parameters[name].data for name in weights}
    try:
        for name, weight in weights.items():
            parameters[name].data = weight
        yield
    finally:
        for name, data in former.items():
            parameters[name].data = data
