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
    raw = save({k: v.contiguous() for k, v in tensors.items()}, metadata)
    # The package writes metadata in another order in every process.
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    write_whole(path, raw[:8] + text.ljust(end - 8) + raw[end:])
