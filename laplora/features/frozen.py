"""States of the base without its adapter, pooled over a prompt's tokens, at several layers: what a head reads.

Which pooling is better depends on the base: SmolLM2 wants means, Qwen2.5 last tokens. So each is a block of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from laplora.features.layers import noted_layers
from laplora.jacobians.states import last_real
from laplora.prompts.rows import Batch, Side
from laplora.prompts.token_roles import AFTER, FIELD


def poolings(side: Side, ends_alike: bool) -> tuple[str, ...]:
    """Return the names of the poolings of a model that is padded on a side.

    Args:
        ends_alike: whether the template has words after its last field.
    """
    if side == "right":
        return ("fields", "first")
    return ("fields", "after", "last") if ends_alike else ("fields", "last")


@contextmanager
def pooled_states(
    model: Any, batch: Batch, roles: Sequence[Sequence[int]], names: Sequence[str]
) -> Iterator[dict[str, torch.Tensor]]:
    """Give blocks, filled at the end of the context by the one pass over a batch that runs inside it.

    They are by name (batch, hidden) float32 on the CPU, at each layer L, counted from 1: ``fields.L``, the mean over
    the tokens of the fields' own texts; of decoders ``after.L``, that over the template's words after the last field,
    and ``last.L``, at the last token; of encoders ``first.L``, at the first token. The last layer's states are after
    the final norm. If no token of a row is a field's, such as in a prompt whose fields were cut away, ``fields.L`` is
    the mean over all its tokens; if none follows them, ``after.L`` is that of the last token.

    Args:
        roles: of each row's tokens; names: of ``poolings``.

    Raises:
        ModelError: a model whose layers are in no list, or give no (batch, tokens, hidden) states.
    """
    weights = _pooling_weights(roles, batch.attention_mask, names)
    pooled, blocks = {name: dict[int, torch.Tensor]() for name in weights}, dict[str, torch.Tensor]()

    def note(number: int, hidden: torch.Tensor) -> None:
        # A prompt with several texts after it comes in as many copies: take the first, without the texts.
        hidden = hidden[:: len(hidden) // len(batch), : batch.input_ids.shape[1]]
        # Values at padding are arbitrary, NaN too.
        hidden = hidden.masked_fill(~batch.attention_mask.to(hidden.device).bool()[:, :, None], 0)
        for name, of_tokens in weights.items():
            pooled[name][number] = torch.einsum("bt,bth->bh", of_tokens.to(hidden), hidden).float().cpu()

    with noted_layers(model, note):
        yield blocks
    blocks |= {f"{name}.{number}": block for name, layers in pooled.items() for number, block in layers.items()}


def _pooling_weights(
    roles: Sequence[Sequence[int]], attention_mask: torch.Tensor, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return by pooling (batch, tokens) float32 weights, which sum to 1 over each row's real tokens.

    Args:
        roles: of each row's real tokens, of ``laplora.prompts.token_roles``.
        attention_mask: (batch, tokens), on either side padded.
    """
    real = attention_mask.bool().cpu()
    of_token = torch.full(real.shape, -1)
    of_token[real] = torch.tensor([role for of_row in roles for role in of_row])  # both go row by row
    places = torch.arange(real.shape[1])
    last = last_real(attention_mask.cpu())[:, None] == places
    shown = {"fields": of_token == FIELD, "after": of_token == AFTER, "last": last, "first": real & (places == 0)}
    weights = {}
    for name in names:
        tokens = shown[name]
        tokens = torch.where(tokens.any(1, keepdim=True), tokens, real if name == "fields" else last)
        weights[name] = tokens.float() / tokens.sum(1, keepdim=True)
    return weights
