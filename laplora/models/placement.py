"""Where a model's weights lie: on one device, or spread over several by accelerate's ``device_map``.

A spread model's inputs, logits and everything that follows from them are on one device, that of its input embedding.
What belongs to a module (activations, gradients, Jacobians, and the posterior's bases for them) is on the module's
device. Hooks of accelerate move activations from one device to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from laplora.errors import ModelError
from laplora.models.spread import Spread, fetched


def first_device(spread: Spread) -> torch.device:
    """Return the device of the first module, before the model is loaded; its inputs should go there."""
    if not isinstance(spread.device_map, str):
        return _device(spread.device_map[0][1])
    if not torch.cuda.is_available():
        return torch.device("cpu")
    used = [device for device, most in spread.max_memory if isinstance(device, int) and str(most) not in ("0", "0GiB")]
    return torch.device("cuda", min(used, default=0))


def spread_of(model: Any) -> Spread | None:
    """Return how a model in memory, without PEFT's wrapping, is spread; None where it is on one device."""
    places = getattr(model, "hf_device_map", None) or {}
    return Spread(tuple(places.items())) if len({str(_device(one)) for one in places.values()}) > 1 else None


def check_spread(model: Any) -> None:
    """Raise ModelError unless a model's weights are on one device, or on several with what moves activations.

    Weights that are fetched from the CPU or the disk in every pass are refused: the written-out reverse pass and the
    posterior's bases need them where they are used.
    """
    devices = {parameter.device for parameter in model.parameters()}
    places = getattr(model, "hf_device_map", None) or {}
    if (torch.device("meta") in devices or len(devices) > 1) and (fault := fetched(places)) is not None:
        raise ModelError(fault)
    if len(devices) > 1 and not places:
        shown = sorted(map(str, devices))
        raise ModelError(
            f"the model is on several devices, {shown}, and nothing moves its activations between them: load it with "
            f"device_map='auto', or on one with device_map={{'': '{shown[0]}'}}"
        )


def device_of(module: Any) -> torch.device:
    """Return where a module's parameters are."""
    device: torch.device = next(module.parameters()).device
    return device


def input_device(base: Any) -> torch.device:
    """Return the device that a model's inputs go to, and its logits come back to: its input embedding's."""
    return device_of(base.get_input_embeddings())


def block_devices(base: Any, names: Iterable[str]) -> dict[str, torch.device] | None:
    """Return where the module of each block is, by the block's name; None where all of them are on one device.

    Args:
        base: a model without PEFT's wrapping; names: each a module's path in it, and a matrix.
    """
    found = {name: device_of(base.get_submodule(name.rpartition(".")[0])) for name in names}
    return found if len({*found.values(), input_device(base)}) > 1 else None


def _device(device: Any) -> torch.device:
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
