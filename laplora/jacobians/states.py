"""What one forward pass shows of an input: hidden states at the last real token after some layers, and the logits.

They are the inputs of the distilled covariance (``laplora.predictive.distilled``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from laplora.errors import ModelError
from laplora.linearised import contrast_mean


@dataclass(frozen=True)
class States:
    """A batch's forward pass, on the CPU, float32.

    Attributes:
        hidden: (batch, layers, hidden), at the last real token, after the layers in question.
        contrast_mean: (batch, classes - 1), ``Q^T f``, nats.
        tokens: (batch,), real tokens of each row.
    """

    hidden: torch.Tensor
    contrast_mean: torch.Tensor
    tokens: torch.Tensor

    def __len__(self) -> int:
        return len(self.hidden)

    def take(self, rows: torch.Tensor) -> States:
        """Return some rows."""
        return States(self.hidden[rows], self.contrast_mean[rows], self.tokens[rows])


def join_states(parts: Sequence[States]) -> States:
    """Return batches as one."""
    return States(
        torch.cat([p.hidden for p in parts]),
        torch.cat([p.contrast_mean for p in parts]),
        torch.cat([p.tokens for p in parts]),
    )


class StateTape(ExitStack[None]):
    """Notes the states of one forward pass, with or without Jacobians, after some layers; a context manager.

    Args:
        attention_mask: (batch, tokens), of the batch that will run; None: padded on the left, each last token is real.

    Raises ModelError for a model without layers of these numbers, from 0.
    """

    def __init__(self, model: Any, layers: Sequence[int], attention_mask: torch.Tensor | None = None) -> None:
        super().__init__()
        every = decoder_layers(model)
        if any(not 0 <= number < len(every) for number in layers):
            raise ModelError(f"the states are those after the layers {list(layers)}, the model has {len(every)}")
        self._modules = [every[number] for number in layers]
        self._mask = attention_mask
        self._noted: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Self:
        for place, module in enumerate(self._modules):
            self.enter_context(module.register_forward_hook(partial(self._note, place)))
        return self

    def _note(self, place: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if self._mask is not None and hidden.shape[:2] != self._mask.shape:
            return  # a probe of the model, which the first Jacobians make before the pass itself
        last = hidden[:, -1] if self._mask is None else hidden[torch.arange(len(hidden)), last_real(self._mask)]
        self._noted[place] = last.detach().clone()

    def states(self, logits: torch.Tensor, attention_mask: torch.Tensor) -> States:
        """Return the pass's states, with its logits (batch, classes) and its batch's mask (batch, tokens)."""
        hidden = torch.stack([self._noted[place].float() for place in range(len(self._modules))], 1)
        mean = contrast_mean(logits.double().cpu())
        return States(hidden.cpu(), mean.float(), attention_mask.sum(1).cpu().float())


def last_real(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the place of each row's last real token, (batch,), of a mask (batch, tokens) padded on either side."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * places).argmax(1)


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return a decoder's or encoder's layers, PEFT's wrapping or not; ModelError where no list holds them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, count = getattr(base, base.base_model_prefix), base.config.get_text_config().num_hidden_layers
    # The second where it also sees or hears, the last ones of encoders.
    inner = (getattr(decoder, name, None) for name in ("language_model", "encoder", "transformer"))
    for part in (decoder, *inner):
        for module in () if part is None else part.children():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
    raise ModelError(f"{type(base).__name__} keeps its {count} layers in no list that could be watched")


def spread_layers(count: int) -> tuple[int, ...]:
    """Return the layers whose states are inputs, of ``count``: after a third, two thirds, and the last but one."""
    return tuple(dict.fromkeys((count // 3, 2 * count // 3, max(count - 2, 0))))
