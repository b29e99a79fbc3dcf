"""Which layers of a base features are read from, and their states as a forward pass goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.jacobians.states import decoder_layers
from laplora.models.readout import base_of

#: How deep the layers are, as shares of the depth.
DEPTHS = (1 / 3, 1 / 2, 0.7, 1.0)
#: Takes a layer's number and its states (rows, tokens, hidden), at least float32, where the layer is.
Note = Callable[[int, torch.Tensor], None]


def feature_layers(model: Any) -> tuple[int, ...]:
    """Return the numbers of a model's layers that are read, counted from 1, ascending.

    Raises:
        ModelError: a model whose layers are in no list.
    """
    depth = len(decoder_layers(model))
    return tuple(sorted({max(1, round(share * depth)) for share in DEPTHS}))


@contextmanager
def noted_layers(model: Any, note: Note) -> Iterator[None]:
    """Note the states of every pass inside the block after each of ``feature_layers``.

    Those of the last layer are after the final norm, as ``output_hidden_states`` of transformers has them.

    Raises:
        ModelError: a layer that gives no (rows, tokens, hidden) states; as of ``feature_layers``.
    """
    layers = decoder_layers(model)

    def noted(number: int, module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        if hidden.dim() != 3:
            kind, shape = type(module).__name__, tuple(hidden.shape)
            raise ModelError(
                f"{kind} gives states of shape {shape}, expected (rows, tokens, hidden): it cannot be read"
            )
        note(number, hidden.detach().to(torch.promote_types(hidden.dtype, torch.float32)))

    with ExitStack() as stack:
        for number in feature_layers(model):
            module = layers[number - 1] if number < len(layers) else body_of(model)
            stack.callback(module.register_forward_hook(partial(noted, number)).remove)
        yield


def body_of(model: Any) -> Any:
    """Return what gives a model's hidden states, without its head; a plain encoder is that itself."""
    base = base_of(model)
    return getattr(base, base.base_model_prefix, base)
