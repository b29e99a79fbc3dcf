"""Rows that begin alike share that beginning: its keys and values are computed once, and a pass runs what follows.

At a causal decoder's token they depend on the tokens up to it alone, so this is exact (prompt caching; Gim et al.,
arXiv 2311.04934). It is a matter of forward passes: Jacobians need the gradients at the beginning's tokens too, which
differ from row to row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from laplora.errors import first_line
from laplora.models.probe import REFUSALS, is_of_the_device, probe_batch
from laplora.models.readout import base_of, last_hidden
from laplora.prompts.rows import Batch, EncodedRow, collate

_log = logging.getLogger(__name__)

#: Tokens from which on a beginning is worth sharing: a cache of 2 tokens costs what it saves (docs/lab-notes.md).
WORTH_TOKENS = 8
#: How far the last hidden states may move, as a share of their norm, by rounding; in float32 0.1 %.
_TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.1}


@dataclass(frozen=True, eq=False)
class Beginning:
    """Tokens that rows begin with, as one model with its adapter has read them.

    Attributes:
        tokens: (tokens,) int64, on the model's device.
        keys, values: by layer (1, heads, tokens, size).
    """

    tokens: torch.Tensor
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def begins(self, batch: Batch) -> bool:
        """Return whether every row of a batch begins with the tokens, and goes on."""
        if batch.position_ids is None or batch.input_ids.shape[1] <= len(self):
            return False
        lengths = batch.attention_mask.sum(1)
        places = batch.input_ids.shape[1] - lengths[:, None] + torch.arange(len(self), device=lengths.device)
        first = batch.input_ids.gather(1, places.clamp_max(batch.input_ids.shape[1] - 1))
        return bool(((first == self.tokens).all(1) & (lengths > len(self))).all())


def read_beginning(model: Any, tokens: Sequence[int], *, max_tokens: int) -> Beginning | None:
    """Return the beginning as a model reads it; None where it is short, or the model does not answer the same by it.

    That is measured on two rows. Why a model does not is logged.

    Args:
        model: a causal decoder, with PEFT's wrapping or not, in evaluation mode; its adapter must not change later.
        tokens: of the beginning; max_tokens: of the longest row.

    Raises:
        RuntimeError: the device failed, or has no memory left.
    """
    base = base_of(model)
    settings = base.config.get_text_config()
    if len(tokens) < WORTH_TOKENS or narrow_window(settings, max_tokens) or _stretches(settings, max_tokens):
        return None
    # A weight that is not finite shows at the golden answers.
    with torch.no_grad():
        try:
            beginning = _read(base, tokens)
            if _same(model, beginning):
                return beginning
            fault = "its rows' states are others by it"
        except (*REFUSALS, RuntimeError) as error:
            if is_of_the_device(error):
                raise
            fault = f"{type(error).__name__}: {first_line(error)[:200]}"
    _log.info("the beginning of the prompts is not shared by %s: %s", type(base).__name__, fault)
    return None


def _read(base: nn.Module, tokens: Sequence[int]) -> Beginning:
    from transformers.cache_utils import DynamicCache

    decoder, cache = _decoder(base), cast(Any, DynamicCache())
    ids = torch.tensor([list(tokens)], device=base.get_input_embeddings().weight.device)  # type: ignore[operator]
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": True, _cache_name(decoder): cache}
    decoder(position_ids=torch.arange(len(tokens), device=ids.device)[None], **options)
    keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
    if any(key.shape[-2] != len(tokens) for key in keys):
        raise ValueError("a layer keeps other keys than one a token")
    return Beginning(ids[0], keys, values)


@contextmanager
def continued(model: Any, beginning: Beginning) -> Iterator[None]:
    """Let passes over batches that begin so run what follows the beginning alone; the last token's state is the same.

    Not for two threads at once.
    """
    from transformers.cache_utils import Cache

    decoder, count = _decoder(base_of(model)), len(beginning)
    name = _cache_name(decoder)

    def go_on(_module: nn.Module, inputs: Any, options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids, positions = options["input_ids"][:, count:], options["position_ids"][:, count:]
        # A shorter row has some of its beginning among these, or padding: nothing sees that.
        after_beginning = (positions >= count).to(options["attention_mask"].dtype)
        return inputs, {
            **options,
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": torch.cat([after_beginning.new_ones(len(ids), count), after_beginning], 1),
            name: Cache(layers=[_shared(*of_layer) for of_layer in zip(beginning.keys, beginning.values, strict=True)]),
        }

    handle = decoder.register_forward_pre_hook(go_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _shared(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """Return one layer of a cache: every row's begins with (1, heads, tokens, size), and what follows is not kept."""
    from transformers.cache_utils import DynamicLayer

    def update(own_keys: torch.Tensor, own_values: torch.Tensor, *_args: Any, **_options: Any) -> Any:
        every = len(own_keys), -1, -1, -1
        return torch.cat([keys.expand(every), own_keys], -2), torch.cat([values.expand(every), own_values], -2)

    layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values, layer.update = keys, values, update
    return layer


def narrow_window(settings: Any, tokens: int) -> bool:
    """Return whether a configuration has a window of attention that is shorter than so many tokens."""
    windows = [getattr(settings, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return any(window is not None and window < tokens for window in windows)


def _stretches(settings: Any, tokens: int) -> bool:
    """Return whether the rotary embeddings of a row of so many tokens may depend on its length."""
    rope = getattr(settings, "rope_parameters", None) or getattr(settings, "rope_scaling", None) or {}
    of_types = [rope, *(one for one in rope.values() if isinstance(one, Mapping))]
    for one in of_types:
        if str(one.get("rope_type", one.get("type"))) in ("dynamic", "longrope"):
            limit = one.get("original_max_position_embeddings") or settings.max_position_embeddings
            if tokens > limit:
                return True
    return False


def _decoder(base: Any) -> nn.Module:
    decoder: nn.Module = getattr(base, base.base_model_prefix)
    return decoder


def _cache_name(decoder: nn.Module) -> str:
    """Return what a forward pass calls its cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def _same(model: Any, beginning: Beginning) -> bool:
    """Return whether two rows of different length have the last hidden states that they have in a pass of their own."""
    first, second = probe_batch(model).input_ids.tolist()
    tokens = beginning.tokens.tolist()
    rows = [EncodedRow((*tokens, *first), 2), EncodedRow((*tokens, *second[-1:]), 2)]
    padding = base_of(model).config.get_text_config().pad_token_id
    batch = collate(rows, class_count=2, pad_token_id=padding or 0).to(beginning.tokens.device)
    expected = last_hidden(model, batch)
    with continued(model, beginning):
        states = last_hidden(model, batch)
    gap = (states - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
    return bool((gap <= _TOLERANCE.get(states.dtype, 1e-3)).all())
