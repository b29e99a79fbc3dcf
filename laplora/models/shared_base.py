"""Base models that several artifacts share: the tensors are loaded once, the modules are each artifact's.

An adapter is attached to modules, so never to those of a ``LoadedBase``: ``share`` copies them and keeps the tensors.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch

from laplora.models.base import BaseSpec, LoadedBase, load_base_model


class SharedBases:
    """Base models in memory, each freed when nobody keeps it any more. Thread-safe."""

    def __init__(self) -> None:
        self._bases: WeakValueDictionary[Hashable, LoadedBase] = WeakValueDictionary()
        self._loading = threading.Lock()

    def get(
        self,
        location: str,
        spec: BaseSpec,
        weights_hash: str,
        *,
        device: torch.device,
        dequantize: bool | None = None,
        on_load: Callable[[], None] = lambda: None,
    ) -> LoadedBase:
        """Return the base, loaded now if it is not in memory; the rest is as of ``load_base_model``.

        Args:
            weights_hash: of the files there (``laplora.models.hashes.weights_hash``).
            on_load: called before it is loaded.
        """
        key = (location, spec, weights_hash, device, dequantize)
        with self._loading:
            base = self._bases.get(key)
            if base is None:
                on_load()
                base = self._bases[key] = load_base_model(location, spec, device=device, dequantize=dequantize)
            return base


def share(model: Any) -> Any:
    """Return a model of the same class with new modules and the same tensors, quantized ones included."""
    return copy.deepcopy(model, {id(held): held for held in _held_by_modules(model)})


def _held_by_modules(model: Any) -> Iterator[Any]:
    """Yield what modules hold and a copy must not: parameters, buffers, and tensors or 4-bit states beside them."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) or type(value).__name__ == "QuantState":
                yield value
