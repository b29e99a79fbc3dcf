"""How weights are held: 4-bit ones as they are, or expanded once at load where memory allows; what they take of it.

Expanded weights are the same numbers. They are faster on a CPU and take about four times the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

#: The memory that must stay free beside the expanded weights, for activations and everything else: this many bytes and
#: this share of the weights.
MARGIN_BYTES = 512 * 2**20
MARGIN_SHARE = 0.25


@dataclass(frozen=True)
class HeldWeights:
    """How a base's weights are held: in 4 bit, expanded from 4 bit at load, or never in 4 bit; and why."""

    held: Literal["packed", "expanded", "plain"]
    reason: str


def decide(expanded_bytes: int, device: torch.device, dequantize: bool | None) -> HeldWeights:
    """Return how 4-bit weights are to be held.

    ``dequantize`` says whether to expand them; None expands on a CPU, unless the memory is known not to suffice.
    """
    if dequantize is not None:
        return HeldWeights("expanded" if dequantize else "packed", "as requested")
    if device.type != "cpu":
        return HeldWeights("packed", f"{device.type} has kernels for 4-bit weights")
    available = available_memory_bytes()
    if available is None:
        return HeldWeights("expanded", "faster on a CPU; how much memory is available is unknown")
    needed = round(expanded_bytes * (1 + MARGIN_SHARE)) + MARGIN_BYTES
    sizes = f"{_gib(expanded_bytes)} and a margin, {_gib(needed)} in all; available are {_gib(available)}"
    if available < needed:
        return HeldWeights("packed", f"expanded weights would need {sizes}")
    return HeldWeights("expanded", f"faster on a CPU, and there is the memory: {sizes}")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"


def keep_4bit_differentiable(model: Any) -> None:
    """Turn off bitsandbytes' inference-only weight layout, in place.

    After a forward without gradient on a CPU with AVX512-BF16, it silently yields no gradient (bitsandbytes 0.50).
    """
    for module in packed_linears(model).values():
        module.support_avx512bf16_for_cpu = False


def packed_linears(model: Any) -> dict[str, Any]:
    """Return the bitsandbytes 4-bit linears by module path."""
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def expanded_bytes(model: Any, dtype: torch.dtype) -> int:
    """Return the bytes that the 4-bit weights take once expanded."""
    entries: int = sum(m.in_features * m.out_features for m in packed_linears(model).values())
    return entries * dtype.itemsize


def dequantize_linears(model: Any, dtype: torch.dtype) -> None:
    """Replace each bitsandbytes 4-bit linear by a plain one holding the dequantized weight, in place."""
    for name in list(packed_linears(model)):  # names only: each packed weight is freed when its replacement is there
        module = model.get_submodule(name)
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(plain_weight(module, dtype), requires_grad=False)
        plain.bias = module.bias
        model.set_submodule(name, plain)
    # transformers and peft dispatch on these two marks, and the weights are plain now.
    model.is_loaded_in_4bit = False
    model.is_quantized = False
    model.expanded_from = "nf4"  # what an artifact says of it
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def plain_weight(linear: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a linear's weight (out, in), expanded where it is in 4 bits."""
    weight: Any = linear.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    result: torch.Tensor = weight.to(dtype)
    return result


def non_finite(model: nn.Module) -> str | None:
    """Return the name of a parameter that holds NaN or infinity, the scales of packed 4-bit ones included, or None."""
    for name, parameter in model.named_parameters():
        if not all(bool(values.isfinite().all()) for values in _numbers(parameter)):
            return name
    return None


def _numbers(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return a parameter's values, of a packed one the scales: its codes are always those of numbers.

    Codes may be packed into a floating format (``bnb_4bit_quant_storage``), in which they mean nothing.
    """
    state: Any = getattr(parameter, "quant_state", None)
    if state is None:
        return [parameter] if parameter.is_floating_point() else []
    holders = (state, getattr(state, "state2", None))
    scales = [getattr(holder, name, None) for holder in holders for name in ("absmax", "offset")]
    return [scale for scale in scales if isinstance(scale, torch.Tensor) and scale.is_floating_point()]


def tensor_bytes(*values: Any) -> int:
    """Return the bytes of the storages behind every tensor in the values, each storage once."""
    storages = {}
    for tensor in _tensors(values):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module):
        return  # a model's tensors are its owner's to count
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _tensors(item)


def available_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that this process can still take without swapping or being killed; None where unknown.

    The least of the kernel's estimate and of what each control group (version 1 and 2) over this process has left, its
    file cache counted as free.
    """
    system = _field(proc / "meminfo", "MemAvailable:")  # KiB
    return min(chain([] if system is None else [1024 * system], _left_in_groups(proc, cgroups)), default=None)


def _left_in_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names = "memory.max", "memory.current", ("active_file ", "inactive_file ")
            roots = [cgroups, cgroups / "unified"]
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file ", "total_inactive_file ")
            roots = [cgroups / "memory"]
        else:
            continue
        # In a container the path may be the host's, and only the root be there.
        group = Path(path.lstrip("/"))
        for folder in (root / part for root in roots for part in (group, *group.parents)):
            limit, used = (_field(folder / name) for name in names[:2])
            if limit is not None and used is not None:
                cache = sum(_field(folder / "memory.stat", name) or 0 for name in names[2])
                yield max(0, limit - used + cache)


def _field(file: Path, name: str = "") -> int | None:
    """Return the number after a name at the start of a line; without a name, that of the first line."""
    numbers = (line.removeprefix(name).split() for line in _lines(file) if line.startswith(name))
    return next((int(words[0]) if words[0].isdecimal() else None for words in numbers if words), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
