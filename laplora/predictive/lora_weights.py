"""Other weights for the adapter of a model, and several adapters on one base model.

They are LoRA weights by block name. Putting them in place copies nothing: the parameters point at its
tensors until the block ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laplora.errors import ArtifactCorruptError, ConfigError
from laplora.models.adapters import verify_adapter
from laplora.models.classifier_head import head_linear, is_adapted, trained_linears
from laplora.models.grouped import run_grouped
from laplora.models.lora import adapter_name, is_classifier, lora_layers, lora_of
from laplora.models.readout import base_of

#: LoRA weights by block name, each of the shape, dtype and device that the model has them in.
Weights = Mapping[str, torch.Tensor]


def adapter_linears(model: Any) -> dict[str, nn.Linear]:
    """Return the linears that an adapter consists of: the LoRA sides by block name, in module order.

    After them come those of a trained head by their paths in the base. Of a head without an adapter they are all.
    """
    classifies = is_classifier(base_of(model))
    layers = lora_layers(model) if is_adapted(model) or not classifies else {}
    lora = {f"{name}.{side}": linear for name, layer in layers.items() for side, linear in lora_of(layer).sides.items()}
    return lora | ({path: head_linear(model, path) for path in trained_linears(model)} if classifies else {})


def lora_parameters(model: Any) -> dict[str, nn.Parameter]:
    """Return every LoRA matrix of a PEFT model by block name, as (out, in) parameters, in module order.

    After them come the weights and biases of a trained head by their names in the base. Of a head without an adapter
    they are all.
    """
    return {
        name if name.endswith((".lora_A", ".lora_B")) else f"{name}.{kind}": parameter
        for name, linear in adapter_linears(model).items()
        for kind, parameter in linear.named_parameters(recurse=False)
    }


def weight_checksums(parameters: Weights) -> dict[str, int]:
    """Return by block name a number that changes with any bit of a tensor, in one pass over it where it is.

    Each element's bits count by an odd number that says its place: one that changes, or two that change places, always
    show. Many at once go unseen by a chance of about 2^-64.
    """
    found = {}
    for name, parameter in parameters.items():
        tensor = parameter.detach().flatten()
        bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
        odd = torch.arange(1, 2 * len(bits), 2, device=bits.device)
        found[name] = (bits * odd).sum()
    return {name: int(number) for name, number in found.items()}


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
    _check_fit(parameters, weights)
    with _swapped(parameters, weights):
        yield


@contextmanager
def side_by_side(
    parameters: Mapping[str, nn.Parameter], linears: Mapping[str, nn.Linear], members: Sequence[Weights]
) -> Iterator[None]:
    """Let each of several members answer its own rows of a batch inside the block; otherwise as ``in_place``.

    The batch that runs has every row once for each member, one member's rows after another's (``Batch.repeated``). The
    base's linears run once over all rows, the adapter's by one batched product (``laplora.models.grouped``).

    Args:
        linears: of ``adapter_linears``, whose parameters they are.
        members: what takes the place of the model's weights, of which those remain that a member does not name.
    """
    for weights in members:
        _check_fit(parameters, weights)
    names = dict.fromkeys(name for weights in members for name in weights)
    stacked = {
        name: torch.stack([weights.get(name, parameters[name].detach()) for weights in members]) for name in names
    }
    grouped = [linear for name, linear in linears.items() if name in names or f"{name}.weight" in names]
    with _swapped(parameters, stacked), run_grouped(grouped):
        yield


def _check_fit(parameters: Mapping[str, nn.Parameter], weights: Weights) -> None:
    for name, weight in weights.items():
        old = parameters.get(name)
        if old is None or (old.shape, old.dtype, old.device) != (weight.shape, weight.dtype, weight.device):
            raise ConfigError(f"the weights of {name!r} do not fit this model's adapter")


@contextmanager
def _swapped(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let parameters point at these tensors inside the block."""
    former = {name: parameters[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            parameters[name].data = tensor
        yield
    finally:
        for name, data in former.items():
            parameters[name].data = data
