"""A base over several devices by accelerate's ``device_map``: what a person states of it, and where its weights lie.

A spread model's inputs, logits and everything that follows from them are on one device, that of its input embedding.
Everything that belongs to a module (activations, gradients, Jacobians, and the posterior's bases for them) is on the
module's device. Hooks of accelerate move activations from one device to the next. torch is imported where weights are,
not for what a person states.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from laplora.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch

#: How accelerate shares the layers out by itself.
Sharing = Literal["auto", "balanced", "balanced_low_0", "sequential"]
#: The places of a device map whose weights are fetched again in every pass.
_FETCHED = frozenset({"cpu", "disk", "meta"})


@dataclass(frozen=True)
class Spread:
    """How one base model is spread over the devices of this process.

    Attributes:
        device_map: a way to share, or pairs of a module's path in the base and its device, a GPU's number or name.
        max_memory: pairs of a device and the most bytes of weights on it, as a number or as text ("20GiB"). Empty:
            what is free. The batches' activations come on top.
    """

    device_map: Sharing | tuple[tuple[str, int | str], ...]
    max_memory: tuple[tuple[int | str, int | str], ...] = ()

    @classmethod
    def of(
        cls, device_map: str | Mapping[str, int | str] | None, max_memory: Mapping[Any, int | str] | None = None
    ) -> Spread | None:
        """Return the spread of what a person states; None where nothing is stated.

        Raises:
            ConfigError: another way to share than there is, an empty map, weights on the CPU or the disk, or limits of
                memory without a way to share.
        """
        limits = {_number_or_name(device): most for device, most in (max_memory or {}).items()}
        if device_map is None:
            if limits:
                raise ConfigError("max_memory is of the devices of a device_map, and there is none: give both")
            return None
        if isinstance(device_map, str):
            if device_map not in get_args(Sharing):
                raise ConfigError(f"device_map is {device_map!r}, expected a map or one of {list(get_args(Sharing))}")
            return cls(device_map, tuple(limits.items()))  # type: ignore[arg-type]
        if limits:
            raise ConfigError("max_memory goes with a device_map that shares by itself: leave it out beside a map")
        places = tuple((path, _number_or_name(device)) for path, device in device_map.items())
        if not places:
            raise ConfigError("device_map is an empty map: give each module's device, or auto")
        if (fault := _fetched(dict(places))) is not None:
            raise ConfigError(fault)
        return cls(places)

    @classmethod
    def parsed(cls, device_map: str | None, max_memory: str | None) -> Spread | None:
        """Return the spread of texts: a way to share, or a map as a JSON object, and JSON of limits; as ``of``.

        Raises:
            ConfigError: also JSON that is no object of texts and numbers.
        """
        is_way = device_map is None or not device_map.lstrip().startswith("{")
        return cls.of(
            device_map if is_way else _object("device_map", device_map),
            None if max_memory is None else _object("max_memory", max_memory),
        )

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of transformers' ``from_pretrained``."""
        one = self.device_map
        arguments: dict[str, Any] = {"device_map": one if isinstance(one, str) else dict(one)}
        return arguments | ({"max_memory": dict(self.max_memory)} if self.max_memory else {})


def _fetched(places: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a device map that puts weights where nothing is computed; None: it does not."""
    odd = next(((path, str(device)) for path, device in places.items() if str(device) in _FETCHED), None)
    if odd is None:
        return None
    return (
        f"device_map puts {odd[0] or 'the model'} on {odd[1]!r}, from where it would be fetched in every pass, and "
        "laplora computes where weights lie: use more or larger GPUs, 4-bit weights, or a larger max_memory"
    )


def _object(name: str, text: str | None) -> dict[str, int | str]:
    try:
        parsed = json.loads(text or "")
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict) or not all(type(value) in (int, str) for value in parsed.values()):
        raise ConfigError(f'{name} is no JSON object of devices, such as {{"0": "20GiB"}} for limits of memory')
    return parsed


def _number_or_name(device: int | str) -> int | str:
    text = str(device)
    return int(text) if text.isdecimal() else text


def first_device(spread: Spread) -> torch.device:
    """Return the device of the first module, before the model is loaded; its inputs should go there.

    Raises:
        ModelError: the map needs a GPU that there is not. Accelerate would use the CPU without a word.
    """
    import torch

    if isinstance(spread.device_map, str):
        used = [one for one, most in spread.max_memory if isinstance(one, int) and str(most) not in ("0", "0GiB")]
        devices = [*map(_device, sorted(used) or [0])]
    else:
        devices = [_device(one) for _, one in spread.device_map]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # NVML counts with a broken driver too
    lacking = next((str(one) for one in devices if one.type == "cuda" and (one.index or 0) >= count), None)
    if lacking is not None:
        raise ModelError(
            f"device_map needs {lacking!r}, and torch finds {count} CUDA devices: check the driver (nvidia-smi), or "
            "leave device_map out and state a device, such as 'cpu'"
        )
    return devices[0]


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
    if (len(devices) > 1 or any(one.type == "meta" for one in devices)) and (fault := _fetched(places)) is not None:
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
    devices = {name: device_of(base.get_submodule(name.rpartition(".")[0])) for name in names}
    return devices if len({*devices.values(), input_device(base)}) > 1 else None


def _device(device: Any) -> torch.device:
    import torch

    try:
        return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device_map names {device!r}, which is no device") from None
