"""A meter for code that runs on the meta device: the most memory that it would hold at a time.

Every kernel that torch would launch passes by. Code that asks for a value gets zero or False. Attention is what a card
computes where rows have padding, torch's memory-efficient kernel.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def counted_peak(function: Callable[[], Any]) -> int:
    """Return what a call on the meta device holds at a time beyond what was there before, its result included."""
    meter = _Meter()
    with _efficient_attention(), meter:
        held = function()
    del held
    return meter.peak


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # float(), bool() and int() of a tensor
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        for tensor in _tensors((args, kwargs)):
            self._count(tensor, 0)  # what is first seen here was there before
        result = func(*args, **kwargs)
        made = _tensors(result)
        for tensor in made:
            self._count(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self._now + _expanded_bytes(func, args, made))
        return result

    def _count(self, tensor: torch.Tensor, size: int) -> None:
        """Add a storage that is new, with its size, until it is freed."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known and self._known[key]() is storage:
            return
        self._now += size

        def freed(_reference: object) -> None:
            self._now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.is_meta]


def _expanded_bytes(func: Any, args: Any, made: list[torch.Tensor]) -> int:
    """Return the bytes beside its output of a linear with a 4-bit weight, which is expanded in it.

    The expanded weight has the output's number format; its constants are four bytes for 64 weights.
    """
    if func.name() != "bitsandbytes::gemm_4bit":
        return 0
    weights = math.prod(args[2])
    return weights * made[0].itemsize + weights // 64 * 4


@contextmanager
def _efficient_attention() -> Iterator[None]:
    """Run the memory-efficient kernel in place of the plain products that stand for attention on the meta device.

    By name, as its callers find it: torch's modes for functions are off where a backward pass runs layers again.
    """
    functions: Any = torch.nn.functional
    before = functions.scaled_dot_product_attention
    functions.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        functions.scaled_dot_product_attention = before


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(repeats, -3) for t in (key, value))
    bias = attn_mask
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        assert bias is not None
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    wants = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    result: torch.Tensor = kernel(query, key, value, bias, wants, dropout_p, is_causal, scale=scale)[0]
    return result
