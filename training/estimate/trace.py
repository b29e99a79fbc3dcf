"""A meter for code that runs on the meta device: memory that it would hold, and work that it would do.

Every kernel that torch would launch passes by. Its outputs are shapes alone, which live as long as the real tensors
would. Where code asks for a value, it is told zero or False: a mask that is not all ones, a number that is not above a
limit. Attention is what a card computes where rows have padding, torch's memory-efficient kernel.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from training.estimate.cards import Card

#: Seconds that a kernel takes at least, from one launch to the next.
LAUNCH_S = 5e-6
#: Kernels that read of their first tensor only what they return.
_LOOK_UPS = ("aten::embedding", "aten::index.Tensor", "aten::index_select", "aten::gather")


@dataclass(frozen=True)
class Work:
    """What one call would do.

    Attributes:
        peak_bytes: of tensors held at a time, beyond those that were there before.
        kernels: how many there are by (multiplications and additions of products, bytes read and written).
    """

    peak_bytes: int
    kernels: Mapping[tuple[int, int], int]

    @property
    def products(self) -> int:
        """Multiplications and additions of matrix products and attention."""
        return sum(products * count for (products, _), count in self.kernels.items())

    def seconds(self, card: Card) -> float:
        """Return the least time on a card: each kernel at the speed of its products or of its memory, one by one."""
        return sum(
            count * max(products / card.products_per_s, moved / card.bytes_per_s, LAUNCH_S)
            for (products, moved), count in self.kernels.items()
        )


def work_of(function: Callable[[], Any]) -> Work:
    """Return the work of a call on tensors of the meta device; what it returns is held until its end."""
    meter = _Meter()
    with _efficient_attention(), meter:
        held = function()
    del held
    return Work(meter.peak, dict(meter.kernels))


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[tuple[int, int]] = Counter()
        self.peak = self._now = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # float(), bool() and int() of a tensor
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        given = _tensors((args, kwargs))
        for tensor in given:
            self._count(tensor, 0)  # what is first seen here was there before
        result = func(*args, **kwargs)
        made = _tensors(result)
        new = sum(self._count(tensor, None) for tensor in made)
        aside, extra = _packed_product(func, args, made)
        self.peak = max(self.peak, self._now + aside)
        if new or _writes(func):
            moved = 2 * sum(map(_bytes, made)) if func.name() in _LOOK_UPS else sum(map(_bytes, [*given, *made]))
            self.kernels[extra + _products(func, args, kwargs, result), moved + 2 * aside] += 1
        return result

    def _count(self, tensor: torch.Tensor, size: int | None) -> int:
        """Note a tensor's storage with its size, or the one given, until it is freed; return the bytes that are new."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known and self._known[key]() is storage:
            return 0
        size = storage.nbytes() if size is None else size
        self._now += size

        def freed(_reference: object) -> None:
            self._now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        return size


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor) and leaf.is_meta]


def _bytes(tensor: torch.Tensor) -> int:
    """Return the bytes behind a tensor: of one that was broadcast, those that are there."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def _writes(func: Any) -> bool:
    return any(returned.alias_info is not None and returned.alias_info.is_write for returned in func._schema.returns)


def _products(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    count = flop_registry.get(func.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=result))


def _packed_product(func: Any, args: Any, made: list[torch.Tensor]) -> tuple[int, int]:
    """Return the bytes beside its output, and the products, of a linear with a 4-bit weight, which is expanded in it.

    The expanded weight has the output's number format; its constants are four bytes for 64 weights.
    """
    if func.name() != "bitsandbytes::gemm_4bit":
        return 0, 0
    weights = math.prod(args[2])
    return weights * made[0].itemsize + weights // 64 * 4, 2 * weights * (args[0].numel() // args[0].shape[-1])


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
