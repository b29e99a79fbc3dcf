"""A model without some of its decoder layers, in place: what the others are given is what the removed ones were given.

Which layers to remove is another question (``training.workspace.layer_similarity``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from laplora.errors import ModelError, first_line
from laplora.models.decoder_layers import decoder_layers
from laplora.models.lora import is_classifier
from laplora.models.probe import REFUSALS, is_close, probe_batch, runs_on_tokens
from laplora.models.readout import last_hidden


def remove_layers(model: Any, removed: Sequence[int]) -> None:
    """Remove layers from a causal language model without an adapter, in place; the others are numbered anew, from 0.

    Its last hidden states on a short batch are compared with those of the whole model in which these layers return what
    they are given.

    Args:
        removed: numbers of the layers, from 0, ascending.

    Raises:
        ModelError: a classifier; layers that are not found, numbers that the model does not have, or none that is left;
            a model that does not run without these layers, or is then another function, as where later layers use
            their keys.
    """
    layers, kind = _checked(model, removed), type(model).__name__
    if is_classifier(model):
        raise ModelError(f"{kind} is a classifier: layers are removed from causal language models alone")
    batch = probe_batch(model)
    with torch.no_grad(), runs_on_tokens(model), _skipped([layers[number] for number in removed]):
        expected = last_hidden(model, batch)
    drop_layers(model, removed)
    try:
        with torch.no_grad():
            state = last_hidden(model, batch)
    except (*REFUSALS, RuntimeError) as error:
        raise ModelError(
            f"{kind} does not run without its layers {list(removed)} ({type(error).__name__}: "
            f"{first_line(error)[:200]}): others depend on them, so use another base model or remove other layers"
        ) from error
    if not is_close(state, expected):
        raise ModelError(
            f"{kind} without its layers {list(removed)} is not what it is where they return what they are given: "
            "others depend on them, or on their own number; use another base model or remove other layers"
        )


def drop_layers(model: Any, removed: Sequence[int]) -> None:
    """Do what ``remove_layers`` does, without running the model, which may be on the meta device.

    Raises:
        ModelError: layers that are not found, numbers that the model does not have, or none that is left.
    """
    layers = _checked(model, removed)
    count, config = len(layers), model.config.get_text_config()
    earlier = getattr(model, "removed_layers", ())
    left = [number for number in range(count + len(earlier)) if number not in earlier]
    for number in sorted(removed, reverse=True):
        del layers[number]
    for number, layer in enumerate(layers):
        parts: list[Any] = [part for part in layer.modules() if hasattr(part, "layer_idx")]
        for part in parts:
            part.layer_idx = number  # the place of its keys and values in a cache
    for name, values in list(vars(config).items()):
        # One entry a layer, as in layer_types; tokens may be as many by chance.
        if isinstance(values, list | tuple) and len(values) == count and "token" not in name:
            setattr(config, name, type(values)(v for number, v in enumerate(values) if number not in removed))
    config.num_hidden_layers = len(layers)
    # By the numbers that they had in the whole model.
    model.removed_layers = tuple(sorted((*earlier, *(left[number] for number in removed))))


def _checked(model: Any, removed: Sequence[int]) -> nn.ModuleList:
    """Return the model's layers, of which some others than the removed ones are left."""
    layers = decoder_layers(model)
    if list(removed) != sorted(set(removed)) or not all(0 <= number < len(layers) for number in removed):
        raise ModelError(f"the layers to remove are {list(removed)}, expected ascending numbers below {len(layers)}")
    if len(removed) == len(layers):
        raise ModelError(f"no layer is left where all {len(layers)} are removed")
    return layers


@contextmanager
def _skipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers return the hidden states that they are given inside the block."""
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(_given, with_kwargs=True))
        yield


def _given(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    hidden = inputs[0] if inputs else named["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
