"""JSON and tensors, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from laplora.files import write_whole


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors; the same tensors and metadata give the same bytes."""
    write_whole(path, _sorted_metadata(save({k: v.contiguous() for k, v in tensors.items()}, metadata)))


def _sorted_metadata(raw: bytes) -> bytes:
    """Return a safetensors file with its metadata in order, which the package writes in a random one."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return raw[:8] + text.ljust(end - 8) + raw[end:]
