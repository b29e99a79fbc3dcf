"""The states of an input in one forward pass: hidden states after some layers, a vector for each text, and the logits.

The out-of-distribution score (``laplora.familiarity``) compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.linearised import contrast_mean
from laplora.prompts.rows import Side

#: The vector that stands for a text: the mean of its states at so many last real tokens, or at all of them.
Pooling = int | Literal["mean"]


@dataclass(frozen=True)
class States:
    """A batch's forward pass, on the CPU, float32.

    Attributes:
        layers: numbers of the layers in question, from 0.
        hidden: (batch, layers, hidden), after these layers, pooled over the tokens.
        contrast_mean: (batch, classes - 1), ``Q^T f``, nats.
    """

    layers: tuple[int, ...]
    hidden: torch.Tensor
    contrast_mean: torch.Tensor

    def __len__(self) -> int:
        return len(self.hidden)

    def take(self, rows: torch.Tensor) -> States:
        return States(self.layers, self.hidden[rows], self.contrast_mean[rows])

    def after(self, layers: Sequence[int]) -> States:
        """Return the states after some of the layers; ValueError for a layer that was not watched."""
        places = [self.layers.index(number) for number in layers]
        return States(tuple(layers), self.hidden[:, places], self.contrast_mean)


def join_states(parts: Sequence[States]) -> States:
    return States(
        parts[0].layers,
        torch.cat([p.hidden for p in parts]),
        torch.cat([p.contrast_mean for p in parts]),
    )


class StateTape(ExitStack[None]):
    """Notes the states of one forward pass, with or without Jacobians, after some layers; a context manager.

    Args:
        attention_mask: (batch, tokens), of the batch that will run, on the model's device.
        pooling: over the tokens. If a read-out runs a prompt with several texts after it, the last tokens are those of
            the prompt.
        skipped: tokens at each row's start that the pass does not run (``laplora.models.beginning``); of rows that are
            padded on the left and pooled by their last tokens.

    Raises ModelError for a model without layers of these numbers, from 0.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        attention_mask: torch.Tensor,
        pooling: Pooling = 1,
        skipped: int = 0,
    ) -> None:
        super().__init__()
        every = decoder_layers(model)
        if any(not 0 <= number < len(every) for number in layers):
            raise ModelError(f"the states are those after the layers {list(layers)}, the model has {len(every)}")
        self._layers = tuple(layers)
        self._modules = [every[number] for number in layers]
        self._mask, self._pooling, self._skipped = attention_mask, pooling, skipped
        self._noted: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Self:
        for place, module in enumerate(self._modules):
            self.enter_context(module.register_forward_hook(partial(self._note, place)))
        return self

    def _note(self, place: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden, rows = output[0] if isinstance(output, tuple) else output, len(self._mask)
        tokens = self._mask.shape[1] - self._skipped
        if len(hidden) % rows or hidden.shape[1] < tokens:
            return  # a probe of the model, which the first Jacobians make before the pass itself
        # A prompt with several texts after it comes in as many copies: take the first, without the texts.
        hidden = hidden[:: len(hidden) // rows, :tokens].detach()
        mask = self._mask.to(hidden.device)
        if self._pooling != "mean":
            places = last_real(mask)[:, None] - torch.arange(self._pooling, device=mask.device)
            mask = mask.gather(1, places.clamp_min(0)) * (places >= self._skipped)
            hidden = hidden[torch.arange(rows)[:, None], (places - self._skipped).clamp_min(0)]
        # Values at padding are arbitrary, NaN too.
        self._noted[place] = hidden.float().masked_fill(mask[:, :, None] == 0, 0).sum(1) / mask.sum(1, keepdim=True)

    def states(self, logits: torch.Tensor) -> States:
        """Return the pass's states, with its logits (batch, classes)."""
        noted = [self._noted[place].float() for place in range(len(self._modules))]
        if len({one.device for one in noted}) > 1:  # of a model that is spread over several
            noted = [one.cpu() for one in noted]
        hidden = torch.stack(noted, 1).cpu()
        mean = contrast_mean(logits.double().cpu())
        return States(self._layers, hidden, mean.float())


def pooling_of(side: Side, tokens: int) -> Pooling:
    """Return how states are pooled by the side on which rows are padded: an encoder's over all, else so many last."""
    return tokens if side == "left" else "mean"


def last_real(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the place of each row's last real token, (batch,), of a mask (batch, tokens) padded on either side."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * places).argmax(1)


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return a decoder's or encoder's layers, PEFT's wrapping or not; ModelError where no list holds them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(base, base.base_model_prefix, base)  # a plain encoder is that itself
    count = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    # The second where it also sees or hears, the last ones of encoders.
    inner = (getattr(decoder, name, None) for name in ("language_model", "encoder", "transformer"))
    for part in (decoder, *inner):
        for module in () if part is None else part.children():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
    counted = "layers" if count is None else f"{count} layers"
    raise ModelError(f"{type(base).__name__} keeps its {counted} in no list that could be watched")
