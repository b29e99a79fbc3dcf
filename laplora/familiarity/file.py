"""Familiarity on disk: named tensors and back, every shape and value checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from laplora.errors import ArtifactCorruptError
from laplora.familiarity.mahalanobis import LayerDistance
from laplora.familiarity.ood_score import OodScore
from laplora.familiarity.percentile import Familiarity
from laplora.jacobians.states import decoder_layers
from laplora.models.readout import base_of
from laplora.posterior.file import read_tensors

#: A layer's tensors, each named ``<layer>.<part>``.
PARTS = ("center", "directions", "class_centers", "variances", "rest")
REFERENCE, WEIGHT = "reference", "weight"
#: How far inner products of the directions may be from those of orthonormal ones: they are kept in float16.
_SKEWED = 0.01


def familiarity_tensors(familiarity: Familiarity) -> dict[str, torch.Tensor]:
    """Return it as named tensors, for safetensors."""
    ood_score = familiarity.score
    layers = zip(ood_score.layers, ood_score.distances, strict=True)
    tensors = {f"{number}.{part}": getattr(distance, part) for number, distance in layers for part in PARTS}
    return tensors | {REFERENCE: familiarity.reference, WEIGHT: torch.tensor(ood_score.weight, dtype=torch.float64)}


def read_familiarity_for(model: Any, path: Path, layers: Sequence[int], tokens: int = 1) -> Familiarity:
    """Return what a file holds, checked against a loaded model; the rest as ``read_familiarity``."""
    hidden: int = base_of(model).config.get_text_config().hidden_size
    return read_familiarity(path, layers=layers, hidden=hidden, available=len(decoder_layers(model)), tokens=tokens)


def read_familiarity(path: Path, *, layers: Sequence[int], hidden: int, available: int, tokens: int = 1) -> Familiarity:
    """Return what a file holds; the rest as ``checked_familiarity``."""
    tensors, _ = read_tensors(path)
    return checked_familiarity(path.name, tensors, layers=layers, hidden=hidden, available=available, tokens=tokens)


def checked_familiarity(
    file: str,
    kept: Mapping[str, torch.Tensor],
    *,
    layers: Sequence[int],
    hidden: int,
    available: int,
    tokens: int = 1,
) -> Familiarity:
    """Return what named tensors hold, as it is multiplied: in float64.

    A file without a weight is of an earlier fit, in which the logits had no part.

    Args:
        file: what messages call it.
        layers: that it should have; hidden: size of the model's states; available: how many layers the model has;
            tokens: as of ``Familiarity``.

    Raises:
        ArtifactCorruptError: an unreadable file, a layer that the model does not have, a tensor missing or left over,
            of another shape or with a value that it cannot have.
    """
    tensors = {WEIGHT: torch.zeros((), dtype=torch.float64), **kept}
    if len(set(layers)) != len(layers) or not all(0 <= number < available for number in layers):
        raise ArtifactCorruptError(f"{file}: its layers {list(layers)} are not among the model's {available}")
    wanted = {f"{number}.{part}" for number in layers for part in PARTS} | {REFERENCE, WEIGHT}
    if odd := sorted(set(tensors) ^ wanted):
        raise ArtifactCorruptError(f"{file}: {len(odd)} tensors are missing or left over, such as {odd[0]!r}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"{file}: {name} should be finite numbers")
    reference = tensors[REFERENCE].double()
    if reference.dim() != 1 or not len(reference) or bool((reference.diff() < 0).any()):
        raise ArtifactCorruptError(f"{file}: {REFERENCE} should be one number or more, ascending")
    weight = tensors[WEIGHT]
    if weight.dim() or weight < 0:
        raise ArtifactCorruptError(f"{file}: {WEIGHT} should be one number, 0 or above")
    distances = tuple(
        _distance(file, number, {part: tensors[f"{number}.{part}"].double() for part in PARTS}, hidden)
        for number in layers
    )
    return Familiarity(OodScore(tuple(layers), distances, float(weight)), reference, tokens)


def _distance(file: str, number: int, parts: dict[str, torch.Tensor], hidden: int) -> LayerDistance:
    directions, centers = parts["directions"], parts["class_centers"]
    kept = directions.shape[1] if directions.dim() == 2 else 0
    shapes = {
        "center": (hidden,),
        "directions": (hidden, kept),
        "class_centers": (centers.shape[0] if centers.dim() else 0, kept),
        "variances": (kept,),
        "rest": (),
    }
    for part, shape in shapes.items():
        if tuple(parts[part].shape) != shape:
            raise ArtifactCorruptError(f"{file}: {number}.{part} should be of shape {shape}")
    if kept > hidden:  # before their inner products are taken, which would fill the memory
        raise ArtifactCorruptError(f"{file}: layer {number} has {kept} directions, of {hidden} numbers each")
    if not len(centers) or not bool((parts["variances"] > 0).all() and parts["rest"] > 0):
        raise ArtifactCorruptError(f"{file}: layer {number} needs a class centre, and variances above 0")
    skewed = directions.T @ directions - torch.eye(kept, dtype=directions.dtype)
    if kept and float(skewed.abs().max()) > _SKEWED:
        raise ArtifactCorruptError(f"{file}: the directions of layer {number} are not orthonormal")
    return LayerDistance(**parts)
