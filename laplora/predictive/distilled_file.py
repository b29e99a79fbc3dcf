"""The distilled covariance on disk: named tensors and back, every shape and value checked.

Files of format 3 hold no ridge and no error of each row. The ridge can be told from the coefficients: these are fitted
to deviations from a mean, which sum to zero, so ``1^T (K + ridge I) coefficients = 0``. What was fitted follows, and
from it the errors of left-out rows, as in a new fit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.states import decoder_layers
from laplora.predictive.distilled import RIDGES, TENSORS, DistilledCovariance, kernel_error
from laplora.predictive.distilled_error import KernelError, regularised_factor

#: The tensors of the predictor's own error, which files of format 3 do not have.
ERROR_TENSORS = ("ridge", "error_scale", "unfamiliar_variance")


@dataclass(frozen=True)
class OlderRecord:
    """What the manifest of an artifact of format 3 says of its predictor.

    Attributes:
        inputs: whose covariances were distilled, the calibration rows first; error: of all rows, root mean square.
    """

    inputs: int
    calibration_rows: int
    error: float


def distilled_tensors(distilled: DistilledCovariance) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the predictor as named tensors and metadata, for safetensors.

    Raises:
        TypeError: one that was read from a file of format 3 and does not know its error of each row.
    """
    error = distilled.error
    if not isinstance(error, KernelError):
        raise TypeError("a predictor with one error for all rows has no file in this format")
    tensors = {name: getattr(distilled, name) for name in TENSORS}
    tensors |= dict(zip(ERROR_TENSORS, (error.ridge, error.scale, error.unfamiliar_variance), strict=True))
    return tensors, {"layers": json.dumps(list(distilled.layers))}


def read_distilled_for(model: Any, path: Path, classes: int, older: OlderRecord | None = None) -> DistilledCovariance:
    """Return the predictor in a file, checked against a loaded model; arguments and errors as ``read_distilled``."""
    hidden: int = model.get_base_model().config.get_text_config().hidden_size
    return read_distilled(path, classes=classes, hidden=hidden, layers=len(decoder_layers(model)), older=older)


def read_distilled(
    path: Path, *, classes: int, hidden: int, layers: int, older: OlderRecord | None = None
) -> DistilledCovariance:
    """Return the predictor in a file.

    Args:
        classes: number of labels; hidden: size of the model's states; layers: how many layers it has.
        older: of the artifact's manifest, if it is of format 3; None: the file is of the present format.

    Raises:
        ArtifactCorruptError: an unreadable file, a tensor missing or left over, of another shape or with NaN, layers
            that the model does not have, or an error that is none.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  not a dict
        numbers = json.loads(metadata["layers"])
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise ArtifactCorruptError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from None
    wanted = TENSORS if older else (*TENSORS, *ERROR_TENSORS)
    if set(tensors) != set(wanted):
        raise ArtifactCorruptError(f"{path.name} should hold {sorted(wanted)}, it holds {sorted(tensors)[:16]}")
    watched = isinstance(numbers, list) and all(type(n) is int and 0 <= n < layers for n in numbers) and numbers
    if not watched:
        raise ArtifactCorruptError(f"{path.name}: its layers are not among the model's {layers}")
    if any(tensors[name].dim() != 2 for name in ("directions", "support")):
        raise ArtifactCorruptError(f"{path.name}: directions and support should be matrices")
    kept = tensors["directions"].shape[1]
    scalars = (classes - 1) + 1 + len(numbers) + 1
    inputs, entries = tensors["support"].shape[0], classes * (classes - 1) // 2
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
    for name in wanted:
        shape = shapes[name]
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"{path.name}: {name} should be finite numbers of shape {shape}")
    # As they are multiplied: an answer need not convert them again.
    doubles = {name: tensor.double() for name, tensor in tensors.items()}
    found = DistilledCovariance(
        layers=tuple(numbers), **{n: doubles[n] for n in TENSORS}, error=older.error if older else 0.0
    )
    return replace(found, error=_older_error(found, older, classes) if older else _error(path, found, doubles))


def _error(path: Path, predictor: DistilledCovariance, tensors: dict[str, torch.Tensor]) -> KernelError:
    """Return the predictor's own error, as it is on record."""
    ridge, scale, limit = (tensors[name] for name in ERROR_TENSORS)
    if not (ridge > 0 and scale >= 0 and 0 <= limit <= 1):
        raise ArtifactCorruptError(
            f"{path.name}: ridge {float(ridge):g}, error_scale {float(scale):g} and unfamiliar_variance "
            f"{float(limit):g} should be above 0, at least 0, and from 0 to 1"
        )
    return KernelError(ridge, scale, limit, regularised_factor(predictor.support_kernel(), float(ridge)))


def _older_error(predictor: DistilledCovariance, older: OlderRecord, classes: int) -> KernelError | float:
    """Return what a predictor of format 3 says of its error: by row, or of all rows where not all is there for that.

    All is there where every input is in the support, the calibration rows first, and one ridge of those that were
    searched explains the coefficients. Which classes each row could have is not on record: the error is that of all.
    """
    kernel, coefficients = predictor.support_kernel(), predictor.coefficients
    sums, weighted = coefficients.sum(0), (kernel @ coefficients).sum(0)
    ridge = -float((weighted @ sums) / (sums @ sums).clamp_min(torch.finfo(torch.float64).tiny))
    nearest = min(RIDGES, key=lambda known: abs(known - ridge))
    if older.inputs != len(kernel) or not 0 < older.calibration_rows <= len(kernel) or abs(ridge / nearest - 1) > 0.05:
        return older.error
    class_mask = torch.ones(older.calibration_rows, classes, dtype=torch.bool)
    return kernel_error(kernel, nearest, coefficients, predictor.mean, class_mask)
