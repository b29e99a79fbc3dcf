"""The distilled covariance on disk: named tensors and back, every shape and value checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from laplora.errors import ArtifactCorruptError
from laplora.models.decoder_layers import decoder_layers
from laplora.models.readout import base_of
from laplora.posterior.file import read_tensors
from laplora.predictive.distilled import MOST_INPUTS, TENSORS, DistilledCovariance, gaussian_kernel
from laplora.predictive.distilled_error import KernelError, regularised_factor

#: The tensors of the predictor's error.
ERROR_TENSORS = ("ridge", "error_scale")


def distilled_tensors(distilled: DistilledCovariance) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the predictor as named tensors and metadata, for safetensors."""
    error = distilled.error
    tensors = {name: getattr(distilled, name) for name in TENSORS}
    tensors |= dict(zip(ERROR_TENSORS, (error.ridge, error.scale), strict=True))
    return tensors, {"layers": json.dumps(list(distilled.layers))}


def read_distilled_for(model: Any, path: Path, classes: int) -> DistilledCovariance:
    """Return the predictor in a file, checked against a loaded model; arguments and errors as ``read_distilled``."""
    hidden: int = base_of(model).config.get_text_config().hidden_size
    return read_distilled(path, classes=classes, hidden=hidden, layers=len(decoder_layers(model)))


def read_distilled(path: Path, *, classes: int, hidden: int, layers: int) -> DistilledCovariance:
    """Return the predictor in a file.

    Args:
        classes: number of labels; hidden: size of the model's states; layers: how many layers it has.

    Raises:
        ArtifactCorruptError: an unreadable file, a tensor missing or left over, of another shape or with NaN, layers
            that the model does not have, or an error that is none.
    """
    tensors, metadata = read_tensors(path)
    try:
        numbers = json.loads(metadata["layers"])
    except (ValueError, KeyError, RecursionError):
        numbers = None
    if not isinstance(numbers, list) or not numbers or not all(type(n) is int and 0 <= n < layers for n in numbers):
        raise ArtifactCorruptError(f"{path.name}: its layers are not among the model's {layers}")
    wanted = (*TENSORS, *ERROR_TENSORS)
    if set(tensors) != set(wanted):
        raise ArtifactCorruptError(f"{path.name} should hold {sorted(wanted)}, it holds {sorted(tensors)[:16]}")
    if any(tensors[name].dim() != 2 for name in ("directions", "support")):
        raise ArtifactCorruptError(f"{path.name}: directions and support should be matrices")
    kept = tensors["directions"].shape[1]
    scalars = (classes - 1) + 1 + len(numbers) + 1
    inputs, entries = min(tensors["support"].shape[0], MOST_INPUTS), classes * (classes - 1) // 2
    shapes: dict[str, tuple[int, ...]] = {
        "center": (len(numbers) * hidden,),
        "directions": (len(numbers) * hidden, kept),
        "scalar_center": (scalars,),
        "scalar_scale": (scalars,),
        "support": (inputs, kept + scalars),
        "coefficients": (inputs, entries),
        "mean": (entries,),
        **dict.fromkeys(ERROR_TENSORS, ()),
    }
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"{path.name}: {name} should be finite numbers of shape {shape}")
    # As they are multiplied: an answer need not convert them again.
    doubles = {name: tensor.double() for name, tensor in tensors.items()}
    return DistilledCovariance(
        layers=tuple(numbers), **{name: doubles[name] for name in TENSORS}, error=_error(path, doubles)
    )


def _error(path: Path, tensors: dict[str, torch.Tensor]) -> KernelError:
    ridge, scale = (tensors[name] for name in ERROR_TENSORS)
    if not (ridge > 0 and scale >= 0):
        raise ArtifactCorruptError(
            f"{path.name}: ridge {float(ridge):g} should be above 0, and error_scale {float(scale):g} at least 0"
        )
    kernel = gaussian_kernel(tensors["support"], tensors["support"])
    try:
        return KernelError(ridge, scale, regularised_factor(kernel, float(ridge)))
    except RuntimeError:  # torch.linalg.LinAlgError is one
        raise ArtifactCorruptError(f"{path.name}: its support should give a kernel that can be factorised") from None
