"""A cache of transformers that holds the keys and values of tokens that all rows begin with, and keeps no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class SharedLayer(DynamicLayer):  # type: ignore[misc, no-untyped-call]
    """One layer's keys and values, (1, heads, tokens, size), of every row alike."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the beginning's and then the rows' own; the rows' are not kept, as no token follows them."""
        rows = len(key_states)
        keys = torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], -2)
        return keys, torch.cat([self.values.expand(rows, -1, -1, -1), value_states], -2)


def empty_cache() -> Any:
    """Return a cache that keeps every key, for the pass over the beginning itself."""
    return DynamicCache()


def shared_cache(keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Any:
    """Return the cache of a batch whose rows follow these, by layer."""
    return Cache(layers=[SharedLayer(k, v) for k, v in zip(keys, values, strict=True)])
