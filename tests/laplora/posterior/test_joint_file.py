"""Joint posteriors on disk: what is written is read, and every way of being wrong is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from joint_problem import PRIORS, cast, fit_joint, rows_of
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_task

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import block_precisions
from laplora.posterior.file import posterior_tensors, read_posterior
from laplora.posterior.joint import JOINT_STRUCTURES, JointPosterior

Tensors = dict[str, torch.Tensor]
#: Its first block: a lora_A of 16 x 3 parameters. Six directions are kept, in a core of 4 x 3 coordinates.
BLOCK = "model.layers.0.self_attn.q_proj.lora_A"


@pytest.fixture(scope="module")
def fitted() -> Callable[[str, str], tuple[JointPosterior, Any]]:
    """Fits of a tiny model by structure and number format, and its rows."""
    model, task = tiny_model("llama"), tiny_task()
    blocks, rows = find_blocks(model, 3), rows_of(model, task, batch_size=24)
    found: dict[tuple[str, str], JointPosterior] = {}

    def fit(structure: str, dtype: str) -> tuple[JointPosterior, Any]:
        if (structure, dtype) not in found:
            basis = getattr(torch, dtype)
            found[structure, dtype] = fit_joint(blocks, rows, structure, 6, rank=4, basis_dtype=basis)
        return found[structure, dtype], cast(rows, torch.float32)[0].jacobians

    return fit


def saved(posterior: JointPosterior, path: Path, dtype: Any) -> Path:
    tensors, metadata = posterior_tensors(posterior, dtype)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("structure", JOINT_STRUCTURES)
def test_a_round_trip(fitted: Any, tmp_path: Path, structure: str, dtype: str) -> None:
    """Directions were rounded when fitted and come back exactly; the factor is stored in float32."""
    posterior, jacobians = fitted(structure, dtype)
    read = read_posterior(saved(posterior, tmp_path / "p", dtype), posterior.blocks)
    assert isinstance(read, JointPosterior)
    assert (read.blocks, read.rows, read.structure) == (posterior.blocks, 24, structure)
    assert all(torch.equal(a, b) for a, b in zip(read.directions, posterior.directions, strict=True))
    torch.testing.assert_close(
        read.factor, posterior.factor, rtol=1e-7, atol=1e-7 * float(posterior.factor.abs().max())
    )
    served, fresh = read.to("cpu", torch.float32), posterior.to("cpu", torch.float32)
    for prior in ("weak", "strong") if structure == "ella" else PRIORS:
        precisions = block_precisions(PRIORS[prior], posterior.blocks)
        expected = fresh.covariance_of(jacobians, precisions)
        # Bases made orthonormal once more move by their own rounding, 1e-8 or 1e-4 of the covariance.
        tolerance = (1e-5 if dtype == "float32" else 1e-3) * float(expected.abs().max())
        torch.testing.assert_close(served.covariance_of(jacobians, precisions), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("structure", JOINT_STRUCTURES)
def test_its_size(fitted: Any, tmp_path: Path, structure: str) -> None:
    """Half as many bytes in bfloat16; a core's directions are in the coordinates of its bases, so they are few."""
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        tensors, _ = posterior_tensors(fitted(structure, dtype)[0], dtype)  # type: ignore[arg-type]
        sizes[dtype] = sum(t.numel() * t.element_size() for n, t in tensors.items() if n != "factor")
        if structure == "joint_core":
            kept, narrow = tensors[f"{BLOCK}.wide"].shape[1], tensors[f"{BLOCK}.narrow"].shape[1]
            assert tensors[f"{BLOCK}.directions"].shape == (6, kept * narrow)
    assert sizes["float32"] == 2 * sizes["bfloat16"]


def test_a_posterior_over_some_blocks(tmp_path: Path) -> None:
    model, task = tiny_model("llama"), tiny_task()
    every = find_blocks(model, 3)
    some = tuple(b for b in every if b.group == "lora_B")[:2]
    posterior = fit_joint(some, rows_of(model, task, batch_size=24, blocks=some), "joint_core", 6, rank=4)
    assert read_posterior(saved(posterior, tmp_path / "p", "float32"), every).blocks == some


def _replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return damage


def _set(name: str, value: float) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name].view(-1)[0] = value

    return damage


def _drop(name: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        del tensors[name]

    return damage


DIRECTIONS, WIDE = f"{BLOCK}.directions", f"{BLOCK}.wide"
DAMAGE: dict[str, tuple[str, Callable[[Tensors], None], str]] = {
    "NaN in the directions": ("joint", _set(DIRECTIONS, torch.nan), f"{DIRECTIONS} holds NaN or infinity"),
    "NaN in the factor": ("joint", _set("factor", torch.nan), "factor holds NaN or infinity"),
    "NaN in the bases": ("joint_core", _set(WIDE, torch.nan), f"{WIDE} holds NaN or infinity"),
    "fewer coordinates": (
        "joint",
        _replace(DIRECTIONS, lambda t: t[:, :-1]),
        r"directions should be a float tensor of shape \(6, 48\), it is torch.float32 \(6, 47\)",
    ),
    "fewer directions than its group": (
        "joint",
        _replace("model.layers.0.self_attn.v_proj.lora_A.directions", lambda t: t[:-1]),
        r"v_proj.lora_A.directions should be a float tensor of shape \(6, 48\), it is torch.float32 \(5, 48\)",
    ),
    "no directions": (
        "joint",
        _replace(DIRECTIONS, lambda t: t[:0]),
        r"of shape \(1, 48\), it is torch.float32 \(0, 48\)",
    ),
    "directions of one dimension": (
        "joint",
        _replace(DIRECTIONS, torch.flatten),
        r"of shape \(1, 48\), it is .* \(288,\)",
    ),
    "coordinates of other bases": (
        "joint_core",
        _replace(WIDE, lambda t: t[:, :3]),
        r"directions should be a float tensor of shape \(6, 9\), it is torch.float32 \(6, 15\)",
    ),
    "basis of another width": (
        "joint_core",
        _replace(WIDE, lambda t: t[:-1]),
        r"of shape \(16, 5\), it is .* \(15, 5\)",
    ),
    "basis scaled": ("joint_core", _replace(WIDE, lambda t: 1.1 * t), f"a basis of {BLOCK} is not orthonormal"),
    "directions scaled": (
        "joint",
        _replace(DIRECTIONS, lambda t: 2 * t),
        "the directions of lora_A are not orthonormal",
    ),
    "directions repeated": (
        "ella",
        _replace(DIRECTIONS, lambda t: t[[0, 0, 1, 2, 3, 4]]),
        "the directions of all are not orthonormal",
    ),
    "factor of other directions": (
        "joint",
        _replace("factor", lambda t: t[:, 1:]),
        r"factor should be a float tensor of shape \(6, 12\), it is torch.float32 \(6, 11\)",
    ),
    "factor of no rows": (
        "joint",
        _replace("factor", lambda t: t[:0]),
        r"of shape \(1, 12\), it is torch.float32 \(0, 12\)",
    ),
    "factor with too many rows": (
        "ella",
        _replace("factor", lambda t: t.repeat(2, 1)),
        "12 rows, more than its 6 directions",
    ),
    "factor of integers": ("joint", _replace("factor", lambda t: t.int()), "float tensor .* it is torch.int32"),
    "no factor": ("joint", _drop("factor"), "name different tensors, 1 in all, such as 'factor'"),
    "a block missing": ("joint", _drop(DIRECTIONS), f"name different tensors, 1 in all, such as '{DIRECTIONS}'"),
    "no bases": ("joint_core", _drop(WIDE), f"name different tensors, 1 in all, such as '{WIDE}'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_values_that_cannot_be(fitted: Any, tmp_path: Path, name: str) -> None:
    structure, damage, message = DAMAGE[name]
    posterior, _ = fitted(structure, "float32")
    tensors, metadata = posterior_tensors(posterior, "float32")
    path = tmp_path / "p"
    save_file(tensors, path, metadata)
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(path, posterior.blocks)


def test_the_structure_of_another_form(fitted: Any, tmp_path: Path) -> None:
    """The metadata says what the tensors are: under another name they are refused, whatever they hold."""
    posterior, _ = fitted("joint_core", "float32")
    tensors, metadata = posterior_tensors(posterior, "float32")
    for structure, message in (("joint", "name different tensors"), ("ekfac", "name different tensors"), ("x", "'x'")):
        save_file(tensors, tmp_path / "p", metadata | {"structure": structure})
        with pytest.raises(ArtifactCorruptError, match=message):
            read_posterior(tmp_path / "p", posterior.blocks)
