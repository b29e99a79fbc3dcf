"""How a base's weights are held: 4-bit ones as they are, or expanded once at load where memory allows.

Expanded weights are the same numbers. They are faster on a CPU and take about four times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

#: What has to stay free beside the expanded weights, for activations and everything else: this many bytes and this
#: share of the weights.
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
    fields = (line.removeprefix(name).split() for line in _lines(file) if line.startswith(name))
    return next((int(words[0]) if words[0].isdecimal() else None for words in fields if words), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
