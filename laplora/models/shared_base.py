"""Base models that several artifacts share: the tensors are loaded once, the modules are each artifact's.

An adapter is attached to modules, so never to those of a ``LoadedBase``: ``share`` copies them and keeps the tensors.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open

from laplora.errors import ModelError
from laplora.models.base import BaseSpec, LoadedBase, load_base_model
from laplora.models.hashes import weight_files
from laplora.models.held_weights import available_memory_bytes
from laplora.models.spread import Spread


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
        device: torch.device | Spread,
        dequantize: bool | None = None,
        on_load: Callable[[], None] = lambda: None,
    ) -> LoadedBase:
        """Return the base, loaded now if it is not in memory; the rest is as of ``load_base_model``.

        Args:
            weights_hash: of the files there (``laplora.models.hashes.weights_hash``).
            on_load: called before it is loaded.

        Raises:
            ModelError: another base is in memory, and this one does not fit beside it; or as ``load_base_model``.
        """
        key = (location, spec, weights_hash, device, dequantize)
        with self._loading:
            base = self._bases.get(key)
            if base is None:
                on_load()
                if self._bases and not isinstance(device, Spread):  # of several devices accelerate says what fits
                    check_room(location, spec, device)
                base = self._bases[key] = load_base_model(location, spec, device=device, dequantize=dequantize)
            return base


def check_room(location: str, spec: BaseSpec, device: torch.device) -> None:
    """Check, before anything loads, that a further base fits into the memory that is free.

    Raises:
        ModelError: its weights alone do not.
    """
    free, least = free_bytes(device), least_bytes(location, spec)
    if free is not None and least > free:
        raise ModelError(
            f"the base model {spec} takes {least / 2**30:.2f} GiB or more, and {free / 2**30:.2f} GiB of {device} are "
            "free beside the base that is loaded: start anew with this artifact"
        )


def least_bytes(location: str, spec: BaseSpec) -> int:
    """Return the bytes that a base's weights take at least.

    In NF4 every weight has 4 bits at least; those that stay in ``dtype`` are not told apart.
    """
    count = 0
    for file in weight_files(location, spec.revision):
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()
            count += sum(math.prod(handle.get_slice(name).get_shape()) for name in names)
    return count // 2 if spec.quantization == "nf4" else count * getattr(torch, spec.dtype).itemsize


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, what torch holds without using it included; None where unknown."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + held)
    return available_memory_bytes() if device.type == "cpu" else None


def share(model: Any) -> Any:
    """Return a model of the same class with new modules and the same tensors, quantized ones included."""
    return copy.deepcopy(model, {id(held): held for held in _held_by_modules(model)})


def _held_by_modules(model: Any) -> Iterator[Any]:
    """Yield what modules hold and a copy must not: parameters, buffers, tensors, 4-bit states and hooks beside them."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) or type(value).__name__ == "QuantState":
                yield value
        if hasattr(module, "_hf_hook"):  # accelerate's, of a model that is spread: it keeps tied weights by device
            yield module._hf_hook
