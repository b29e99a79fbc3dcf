"""Familiarity on disk: what comes back is what was written, and what cannot be is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shown_states import familiarity_of, states_of

from laplora.errors import ArtifactCorruptError
from laplora.familiarity.file import familiarity_tensors, read_familiarity
from laplora.familiarity.percentile import Familiarity
from laplora.files.atomic import write_tensors

HIDDEN, LAYERS = 12, (1, 3)


def fitted() -> Familiarity:
    draw = torch.Generator().manual_seed(0)
    train, calibration = (
        states_of(torch.randn(rows, 2, HIDDEN, generator=draw), torch.randn(rows, 2, generator=draw), layers=LAYERS)
        for rows in (40, 30)
    )
    return familiarity_of(train, torch.arange(40) % 3, calibration)


def read(path: Path, layers: tuple[int, ...] = LAYERS, hidden: int = HIDDEN, available: int = 4) -> Familiarity:
    return read_familiarity(path, layers=layers, hidden=hidden, available=available)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    familiarity, path = fitted(), tmp_path / "familiarity.safetensors"
    write_tensors(path, familiarity_tensors(familiarity))
    again = read(path)
    draw = torch.Generator().manual_seed(4)
    hidden = torch.randn(25, 2, HIDDEN, generator=draw) * 1.3
    new = states_of(hidden, torch.randn(25, 2, generator=draw), layers=LAYERS)
    assert again.layers == LAYERS
    assert torch.equal(again.of(new), familiarity.of(new))
    assert torch.equal(again.reference, familiarity.reference)
    assert again.score.weight == familiarity.score.weight > 0


def test_of_a_file_without_a_weight_the_logits_have_no_part(tmp_path: Path) -> None:
    """Artifacts had none before the logits had a part: they answer as they did."""
    familiarity, path = fitted(), tmp_path / "familiarity.safetensors"
    distances = replace(familiarity.score, weight=0.0)
    tensors = familiarity_tensors(replace(familiarity, score=distances))
    del tensors["weight"]
    write_tensors(path, tensors)
    hidden = torch.randn(25, 2, HIDDEN, generator=torch.Generator().manual_seed(4))
    decided, undecided = (states_of(hidden, size * torch.ones(25, 2), layers=LAYERS) for size in (9.0, 0.1))
    assert torch.equal(read(path).of(decided), read(path).of(undecided))
    assert not torch.equal(familiarity.of(decided), familiarity.of(undecided))


def wide(count: int) -> dict[str, torch.Tensor]:
    """Return what one layer has of so many directions."""
    parts = {"directions": (HIDDEN, count), "class_centers": (1, count), "variances": (count,)}
    return {f"1.{name}": torch.ones(shape) for name, shape in parts.items()}


DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a tensor missing": (lambda t: t.pop("1.variances"), "such as '1.variances'"),
    "other directions": (lambda t: t["1.directions"].mul_(1.2), "layer 1 are not orthonormal"),
    "no variance": (lambda t: t["1.variances"].zero_(), "layer 1 needs .* variances above 0"),
    "a negative rest": (lambda t: t["3.rest"].neg_(), "layer 3 needs .* variances above 0"),
    "no centre": (lambda t: t.update({"1.class_centers": torch.ones(0, HIDDEN - 1)}), "class_centers|class centre"),
    "an order of its own": (lambda t: t.update(reference=t["reference"].flip(0)), "ascending"),
    "more directions than numbers": (
        lambda t: t.update(wide(10**5)),
        "layer 1 has 100000 directions, of 12 numbers each",
    ),
    "a negative weight": (lambda t: t["weight"].fill_(-1.0), "weight should be one number, 0 or above"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "familiarity.safetensors"
    write_tensors(path, familiarity_tensors(fitted()))
    tensors = load_file(path)
    change, message = DAMAGES[damage]
    change(tensors)
    write_tensors(path, tensors)
    with pytest.raises(ArtifactCorruptError, match=message):
        read(path)


def test_layers_that_the_model_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "familiarity.safetensors"
    write_tensors(path, familiarity_tensors(fitted()))
    for layers in ((1, 4), (1, 1), (-1, 3)):
        with pytest.raises(ArtifactCorruptError, match="not among the model's 4"):
            read(path, layers)
