"""Which consecutive decoder layers change a prompt's representation least (Gromov et al., arXiv 2403.17887).

With ``x_l`` the hidden state that enters layer l at a row's last token, and ``x_L`` the one that leaves the last of L
layers, before the final norm, a block of n layers that begins at l has the angular distance (their equation 7)

    ``d(l, n) = arccos(x_l . x_(l+n) / (|x_l| |x_(l+n)|)) / pi``,

averaged over rows. The block with the least one is the paper's choice. Every block is a candidate, as in its search:
from the one that begins with the first layer to the one that ends with the last.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from laplora.errors import ModelError, NonFiniteError
from laplora.models.decoder_layers import decoder_layers
from laplora.models.readout import last_hidden
from laplora.prompts.rows import Batch


@dataclass(frozen=True)
class LayerBlock:
    """Consecutive layers, by number from 0, and the mean angular distance over them, from 0 (none) to 1 (opposite)."""

    layers: tuple[int, ...]
    distance: float


def states_between_layers(model: Any, batch: Batch) -> torch.Tensor:
    """Return the states that enter each layer, and the one that leaves the last: (rows, layers + 1, hidden), float64.

    They are those at each row's last token, on the CPU.

    Args:
        batch: padded on the left, on the model's device.

    Raises:
        ModelError: layers that are not found, or that are not given one state a token.
    """
    layers, shape = decoder_layers(model), batch.input_ids.shape
    noted: dict[int, torch.Tensor] = {}

    def note(place: int, hidden: Any) -> None:
        if not isinstance(hidden, torch.Tensor) or hidden.shape[:-1] != shape:
            raise ModelError(f"the layers of {type(model).__name__} do not pass on one state a token")
        noted[place] = hidden[:, -1].double().cpu()

    def entering(place: int, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        note(place, inputs[0] if inputs else named.get("hidden_states"))

    def leaving(_module: nn.Module, _inputs: Any, output: Any) -> None:
        note(len(layers), output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks, torch.no_grad():
        for place, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_pre_hook(partial(entering, place), with_kwargs=True))
        hooks.enter_context(layers[-1].register_forward_hook(leaving))
        last_hidden(model, batch)
    return torch.stack([noted[place] for place in range(len(layers) + 1)], 1)


def angular_distances(states: torch.Tensor, length: int) -> torch.Tensor:
    """Return the mean angular distance over every block of ``length`` layers: (layers - length + 1,), float64.

    Args:
        states: (rows, layers + 1, hidden), as of ``states_between_layers``.
    """
    before, after = states[:, : states.shape[1] - length].double(), states[:, length:].double()
    # atan2 rather than arccos, which loses half of the digits where two states are nearly the same
    before, after = (x / x.norm(dim=-1, keepdim=True) for x in (before, after))
    angle = 2 * torch.atan2((before - after).norm(dim=-1), (before + after).norm(dim=-1))
    return angle.mean(0) / torch.pi


def most_similar_block(states: torch.Tensor, length: int) -> LayerBlock:
    """Return the block of ``length`` layers with the least angular distance, of equal ones the first.

    Args:
        states: (rows, layers + 1, hidden), as of ``states_between_layers``; length: from 1 to one less than the layers.

    Raises:
        NonFiniteError: states that are not finite, or a state of zeros, which has no direction.
    """
    distances = angular_distances(states, length)
    if not bool(distances.isfinite().all()):
        raise NonFiniteError("hidden states hold NaN, infinity or nothing but zeros, so no layers can be chosen")
    first = int(distances.argmin())
    return LayerBlock(tuple(range(first, first + length)), float(distances[first]))
