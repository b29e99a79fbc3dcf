"""A head alone on disk: the weights and biases of its trained linears by their names in the base, as safetensors."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laplora.errors import ArtifactCorruptError, ModelError, first_line
from laplora.models.classifier_head import head_linear, head_parts, head_weights, output_layer
from laplora.models.quiet import silent_transformers


def save_head(model: Any, trained: tuple[str, ...], file: Path) -> None:
    """Write the trained linears of a head; ``trained`` are their paths in the base."""
    from safetensors.torch import save_file

    weights = head_weights(model, trained)
    save_file({name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}, file)


def attach_head(model: Any, file: Path, trained: tuple[str, ...]) -> Any:
    """Return a base model with a file's weights in the place of its head's, in its number format; itself, frozen.

    Its modules get new parameters: the tensors of the old ones may be other models' too.

    Raises:
        ArtifactCorruptError: a file that cannot be read, or does not hold exactly these linears, each finite; paths
            that are no linears of this model's head.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts = head_parts(model)
    wrong = [path for path in trained if path not in parts or not isinstance(parts[path].module, nn.Linear)]
    if wrong or not trained:
        raise ArtifactCorruptError(f"{file.name} is of {wrong[:2]}, which are no linears of this base's head")
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactCorruptError(f"{file.name} cannot be read: {type(error).__name__}") from None
    weights = head_weights(model, trained)
    if tensors.keys() != weights.keys():
        odd = sorted(tensors.keys() ^ weights.keys())
        raise ArtifactCorruptError(f"{file.name} and the head of this base name different tensors, such as {odd[:2]}")
    for name, parameter in weights.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(
                f"{file.name}: {name} should be finite floats of shape {tuple(parameter.shape)}, it is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        path, _, kind = name.rpartition(".")
        replaced = nn.Parameter(tensor.to(parameter.device, parameter.dtype), requires_grad=False)
        setattr(head_linear(model, path), kind, replaced)
    model.requires_grad_(False)
    return model.eval()


def saved_classes(adapter: Path, location: str, config: Any) -> int:
    """Return how many classes the head has that an adapter's file holds; those of the base's configuration without one.

    Args:
        adapter: its folder; location: of the base, for messages; config: of the base.

    Raises:
        ModelError: a base that has no sequence classification model, or none with a plain linear head.
        ArtifactCorruptError: a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoModelForSequenceClassification

    build: Any = AutoModelForSequenceClassification.from_config
    try:
        with torch.device("meta"), silent_transformers():
            model = build(config, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(
            f"base model {location!r} has no sequence classification model in transformers ({first_line(error)})"
        ) from None
    name = f"base_model.model.{output_layer(model)[0]}.weight"
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as handle:
            names: Any = handle.keys()
            return int(handle.get_slice(name).get_shape()[0]) if name in names else int(config.num_labels)
    except (OSError, ValueError, IndexError, SafetensorError) as error:
        raise ArtifactCorruptError(f"the adapter's file cannot be read ({type(error).__name__})") from None


def check_supplied(model: Any, missing: Collection[str], trained: tuple[str, ...]) -> None:
    """Raise ModelError where a parameter is neither in the base's checkpoint (``missing``) nor in the trained head.

    transformers starts it at random, so that answers would be others after every load.
    """
    absent = sorted(set(missing) - head_weights(model, trained).keys())
    if absent:
        raise ModelError(
            f"{absent[0]} is not in the base's checkpoint and was not saved with the head, so it is random at every "
            "load: name its module in modules_to_save where it is a linear of the head, or save a base that has it"
        )
