"""Two devices beside the CPU, emulated on it: what is computed over two of them fails, as it does on two GPUs.

They are called ``cpu:0`` and ``cpu:1``. A tensor's storage is the CPU's; which device it is on is noted at the tensor,
by a mode of torch that sees every call from Python: tensors go elsewhere by ``to``, ``cpu`` and ``copy_`` alone, new
ones are where they are made, and results where their arguments are. A number without axes may come from the CPU, and so
may an index, as with CUDA. What C++ does by itself (autograd's own kernels) is not seen, and needs no device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten

#: The two.
FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)
_CPU = torch.device("cpu")
#: The second layer, the last norm and the head are on another device than what comes before them.
PLACES = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0"), "cpu:0")
PLACES |= dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), "cpu:1")
#: Of a base with tied embeddings, whose head is where they are.
TIED = PLACES | {"lm_head": "cpu:0"}
#: What may have tensors of several: copies, autograd, and kernels over lists, which torch shares out by the device that
#: C++ sees.
_ACROSS = (
    *("__setitem__", "index_put", "copy_", "data.__set__", "grad.__set__"),
    *("autograd.grad", "backward", "_foreach", "_fused_"),
)
_TAKES_INDEX = ("__getitem__", "__setitem__")


def place_of(tensor: torch.Tensor) -> torch.device:
    """Return the device that a tensor is on, the CPU if it was put nowhere."""
    place: torch.device = getattr(tensor, "_emulated_device", _CPU)
    return place


@contextmanager
def emulated_devices() -> Iterator[None]:
    """Have the two devices inside the block."""
    make = torch.Tensor._make_subclass

    def subclass(kind: Any, data: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        made = make(kind, data, *arguments, **options)
        return _put(made, place_of(data))

    with mock.patch.object(torch.Tensor, "_make_subclass", staticmethod(subclass)), _Devices():
        yield


class _Devices(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = "autograd.grad" if func is torch.autograd.grad else resolve_name(func) or getattr(func, "__name__", "")
        if name.endswith("Tensor.device.__get__"):
            real = func(*args)
            return real if real.type == "meta" else place_of(args[0])
        if name.endswith("Tensor.to"):
            return _to(func, args, kwargs)
        if name.endswith("Tensor.cpu"):
            return _alias(args[0], _CPU)
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == "cpu":
            kwargs["device"], wanted = _CPU, torch.device(wanted)
        elif wanted is not None:
            return func(*args, **kwargs)
        place = wanted if wanted is not None else self._shared(name, args, given)
        found = func(*args, **kwargs)
        if name.endswith("data.__set__"):
            _put(args[0], place_of(args[1]))
            return found
        if name.endswith("autograd.grad"):
            inputs = args[1] if len(args) > 1 else kwargs["inputs"]
            inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
            return tuple(None if g is None else _put(g, place_of(x)) for g, x in zip(found, inputs, strict=True))
        if "_foreach" in name:
            of = args[0]
            return found if found is None else [_put(one, place_of(x)) for one, x in zip(found, of, strict=True)]
        for one in tree_flatten(found)[0]:
            if isinstance(one, torch.Tensor) and not any(one is other for other in given):
                _put(one, place)
        return found

    def _shared(self, name: str, args: Any, given: list[torch.Tensor]) -> torch.device:
        """Return the device of a call's tensors; RuntimeError where there are two."""
        if any(part in name for part in _ACROSS):
            return place_of(args[0]) if args and isinstance(args[0], torch.Tensor) else _CPU
        if any(name.endswith(part) for part in _TAKES_INDEX):
            given = given[:1] + [one for one in given[1:] if place_of(one) != _CPU]
        places = {place_of(one) for one in given if one.dim() or place_of(one) != _CPU}
        if len(places) > 1:
            shown = ", ".join(sorted(map(str, places)))
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {shown}")
        return places.pop() if places else _CPU


def _to(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    tensor, *rest = args
    place, passed = place_of(tensor), []
    for one in rest:
        if isinstance(one, torch.Tensor):
            place, one = place_of(one), one.dtype
        elif isinstance(one, (str, int, torch.device)) and not isinstance(one, bool):
            place, one = torch.device(one), torch.device(one).type
        passed.append(one)
    if "other" in kwargs:
        place, kwargs["dtype"] = place_of(kwargs["other"]), kwargs.pop("other").dtype
    if kwargs.get("device") is not None:
        place = torch.device(kwargs["device"])
        kwargs["device"] = place.type
    found = func(tensor, *passed, **kwargs)
    if place.type != "cpu" or place == place_of(tensor):
        return found if found is tensor or place.type != "cpu" else _put(found, place)
    return _alias(found, place)


def _alias(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    """Return a tensor of the same numbers elsewhere; gradients pass."""
    with torch._C.DisableTorchFunction():
        return _put(tensor if place == place_of(tensor) else tensor.view_as(tensor), place)


def _put(tensor: Any, place: torch.device) -> Any:
    if place != _CPU or hasattr(tensor, "_emulated_device"):
        tensor._emulated_device = place
    return tensor
