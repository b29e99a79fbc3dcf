"""Attaching an adapter to a base model, after every check that its files and its modules can be given."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from laplora.errors import ArtifactCorruptError, first_line
from laplora.models.lora import check_settings, lora_layers
from laplora.models.probe import check_adapted
from laplora.models.quiet import quiet_loading


def attach_adapter(model: nn.Module, folder: Path) -> Any:
    """Return the base model with the PEFT adapter in ``folder``, frozen, in eval mode.

    Raises:
        ModelError: an adapter of a kind the method does not cover, one that changes the base's weights, or one of a
            module that does not run once on every token (``laplora.models.probe.check_adapted``).
        ArtifactCorruptError: adapter files that cannot be read, or that do not hold exactly the LoRA
            matrices of this base, each finite.
    """
    from safetensors import SafetensorError

    with quiet_loading():
        from peft import PeftModel

    try:
        check_settings(folder)
        with quiet_loading(), warnings.catch_warnings():
            # what peft only warns of is checked below, and refused
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            peft_model = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise ArtifactCorruptError(
            f"the adapter in {folder.name!r} does not load on this base: {first_line(error)}"
        ) from None
    verify_adapter(folder, lora_layers(peft_model))
    peft_model.requires_grad_(False)
    peft_model.eval()
    check_adapted(peft_model)
    return peft_model


def verify_adapter(folder: Path, layers: Mapping[str, Any]) -> None:
    """Raise ArtifactCorruptError where the file is not exactly the layers' matrices, each finite."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    expected = {f"base_model.model.{name}.{side}.weight" for name in layers for side in ("lora_A", "lora_B")}
    if tensors.keys() != expected:
        raise ArtifactCorruptError(
            f"the adapter in {folder.name!r} does not hold the LoRA matrices of this base: missing "
            f"{sorted(expected - tensors.keys())[:2]}, not expected {sorted(tensors.keys() - expected)[:2]}"
        )
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            raise ArtifactCorruptError(f"the adapter in {folder.name!r} holds {tensor.dtype}: {name}")
        if not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"the adapter in {folder.name!r} holds NaN or infinity: {name}")
