"""The posterior's file: what is written is read, and every way of being wrong is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from fast_path import close, replay, rows_of
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_task

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.posterior.file import posterior_tensors, read_posterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import STRUCTURES, fit_posterior
from laplora.posterior.subset import select_blocks

Damage = Callable[[dict[str, torch.Tensor]], object]
Dtype = Literal["float32", "bfloat16"]
#: The Llama model's first block, 16 x 3. Kept: 4 directions of its wide side, 5 over all blocks of its group.
BLOCK = "model.layers.0.self_attn.q_proj.lora_A"


@cache
def fitted(structure: str, subset: str = "all", dtype: Dtype = "float32") -> Posterior:
    """Return a posterior of the tiny model."""
    model, task = tiny_model("llama"), tiny_task()
    blocks = select_blocks(find_blocks(model, task.classes), subset)
    settings = StructureSettings(structure, rank=4, oversampling=4, joint_rank=5, basis_dtype=getattr(torch, dtype))
    return fit_posterior(settings, blocks, replay(rows_of(model, task, batch_size=24, blocks=blocks)))


def saved(posterior: Posterior, folder: Path, dtype: Dtype = "float32", **changes: str | None) -> Path:
    """Write a posterior, some of its metadata changed or, by None, left out."""
    tensors, metadata = posterior_tensors(posterior, dtype)
    path = folder / "posterior.safetensors"
    save_file(tensors, path, {k: v for k, v in (metadata | changes).items() if v is not None})
    return path


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("subset", "dtype"), [("all", "float32"), ("all", "bfloat16"), ("values_b", "float32")])
def test_what_is_read_answers_as_what_was_written(structure: str, subset: str, dtype: Dtype, tmp_path: Path) -> None:
    model, task = tiny_model("llama"), tiny_task(examples=4, seed=9)
    before = fitted(structure, subset, dtype)
    path = saved(before, tmp_path, dtype)
    written = load_file(path)
    read = read_posterior(path, find_blocks(model, task.classes))
    assert (type(read), read.structure, read.rows) == (type(before), structure, 24)
    assert read.blocks == before.blocks
    assert len(read.blocks) == {"all": 10, "values_b": 2}[subset]
    precisions = block_precisions(Prior("scalar", {"all": 0.5}), read.blocks)
    jacobians = contrast_jacobians(model, task.batch(), task.label_ids, read.blocks)
    # Bases were rounded when fitted. Made orthonormal once more, they move by their rounding: 1e-8 or 1e-4.
    tolerance = 1e-5 if dtype == "float32" else 1e-3
    close(read.covariance_of(jacobians, precisions), before.covariance_of(jacobians, precisions), tolerance)
    close(read.log_determinant_ratio(precisions), before.log_determinant_ratio(precisions), tolerance)
    close(read.effective_dimension(precisions), before.effective_dimension(precisions), tolerance)
    # Copies of copies do not drift: half a unit of the format.
    again = load_file(saved(read, tmp_path, dtype))
    for name, tensor in written.items():
        close(again[name].float(), tensor.float(), 1e-6 if dtype == "float32" else 1e-2)
        assert (tensor.dtype == torch.float32) == (dtype == "float32" or name.endswith(("factor", "scale", "tail")))


@pytest.mark.parametrize(
    ("structure", "changes", "message"),
    [
        ("ekfac", {"structure": "diagonal"}, "structure 'diagonal', which this version does not know"),
        ("joint_core", {"structure": "joint"}, "structure 'joint', which this version does not know"),
        ("ekfac", {"blocks": f'["{BLOCK}", "{BLOCK}"]'}, "the posterior covers a block twice"),
        ("ekfac", {"blocks": '["mlp.lora_A"]'}, "the posterior covers 'mlp.lora_A', which the adapter has not"),
        ("ekfac", {"blocks": f'["{BLOCK}"]'}, "name different tensors, 36 in all"),
        ("ekfac", {"rows": None}, "does not say how many rows"),
        ("ekfac", {"rows": "²"}, "does not say how many rows"),
    ],
)
def test_metadata_that_cannot_be(structure: str, changes: dict[str, str | None], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(saved(fitted(structure), tmp_path, **changes), fitted(structure).blocks)


def _replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return damage


def _many_directions(tensors: dict[str, torch.Tensor]) -> None:
    for name in [n for n in tensors if n.endswith("lora_A.directions")]:
        tensors[name] = tensors[name].repeat(20_000, 1)


WIDE, SCALE, TAIL, DIRECTIONS = (f"{BLOCK}.{part}" for part in ("wide", "scale", "tail", "directions"))
CORE = "joint_core"
SKEWED = f"a basis of {BLOCK} is not orthonormal"
DAMAGE: dict[str, tuple[str, Damage, str]] = {
    "negative scale": ("ekfac", _replace(SCALE, lambda t: t - 1e9), f"{SCALE} holds a negative curvature"),
    "too many columns": ("ekfac", _replace(WIDE, lambda t: t.repeat(1, 25_000)), r"\(16, 16\), it is .* 100000\)"),
    "basis scaled": ("ekfac", _replace(WIDE, lambda t: 1.1 * t), SKEWED),
    "part missing": ("ekfac", lambda tensors: tensors.pop(TAIL), f"name different tensors, 1 in all, such as '{TAIL}'"),
    "more directions than numbers": (CORE, _many_directions, r"lora_A has 100000 directions of \d+ numbers"),
    "directions scaled": (CORE, _replace(DIRECTIONS, lambda t: 2 * t), "directions of lora_A are not orthonormal"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_values_that_cannot_be(tmp_path: Path, name: str) -> None:
    structure, damage, message = DAMAGE[name]
    tensors, metadata = posterior_tensors(fitted(structure), "float32")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    damage(tensors)
    save_file(tensors, tmp_path / "p", metadata)
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(tmp_path / "p", fitted(structure).blocks)
