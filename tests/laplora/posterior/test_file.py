"""The posterior's file: what is written is read, and every way of being wrong is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fast_path import close, replay, rows_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_task
from tiny_runs import FinishedRun, reseal

from laplora.artifact.manifest import POSTERIOR
from laplora.errors import ArtifactCorruptError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.posterior.file import posterior_tensors, read_posterior
from laplora.posterior.passes import StructureSettings
from laplora.posterior.structures import STRUCTURES, fit_posterior
from laplora.posterior.subset import select_blocks
from laplora.predictor import Predictor

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Tensors], None]
Dtype = Literal["float32", "bfloat16"]
#: The Llama model's first block, 16 x 3. Kept: 4 directions of its wide side, 5 over all blocks of its group.
BLOCK = "model.layers.0.self_attn.q_proj.lora_A"

_FITTED: dict[tuple[str, str, Dtype], Posterior] = {}


def fitted(structure: str, subset: str = "all", dtype: Dtype = "float32") -> Posterior:
    """Return a posterior of the tiny model; fitted once."""
    key = (structure, subset, dtype)
    if key not in _FITTED:
        model, task = tiny_model("llama"), tiny_task()
        blocks = select_blocks(find_blocks(model, task.classes), subset)
        settings = StructureSettings(structure, rank=4, oversampling=4, joint_rank=5, basis_dtype=getattr(torch, dtype))
        _FITTED[key] = fit_posterior(settings, blocks, replay(rows_of(model, task, batch_size=24, blocks=blocks)))
    return _FITTED[key]


def saved(posterior: Posterior, path: Path, dtype: Dtype = "float32", **metadata: str) -> Path:
    tensors, own = posterior_tensors(posterior, dtype)
    save_file(tensors, path, own | metadata)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of an ``ekfac`` posterior."""
    return saved(fitted("ekfac"), tmp_path / "posterior.safetensors")


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("subset", "dtype"), [("all", "float32"), ("all", "bfloat16"), ("values_b", "float32")])
def test_what_is_read_answers_as_what_was_written(structure: str, subset: str, dtype: Dtype, tmp_path: Path) -> None:
    model, task = tiny_model("llama"), tiny_task(examples=4, seed=9)
    before = fitted(structure, subset, dtype)
    path = saved(before, tmp_path / "p", dtype)
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
    again = load_file(saved(read, tmp_path / "again", dtype))
    for name, tensor in load_file(path).items():
        close(again[name].float(), tensor.float(), 1e-6 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_multiplies_jacobians_takes_half_as_many_bytes_in_bfloat16(structure: str) -> None:
    whole, half = (posterior_tensors(fitted(structure), dtype)[0] for dtype in ("float32", "bfloat16"))  # type: ignore[arg-type]
    for name, tensor in whole.items():
        kept = name.endswith(("factor", "scale", "tail"))
        assert tensor.element_size() == (1 if kept else 2) * half[name].element_size()
    if structure == "joint_core":  # directions in the coordinates of the bases, so they are few
        kept_columns = whole[f"{BLOCK}.wide"].shape[1]
        assert whole[f"{BLOCK}.directions"].shape == (5, kept_columns * 3)


@pytest.mark.parametrize(
    ("structure", "stored", "message"),
    [
        ("ekfac", "", "structure '', which this version does not know"),
        ("ekfac", "diagonal", "structure 'diagonal', which this version does not know"),
        ("ekfac", "EKFAC", "structure 'EKFAC', which this version does not know"),
        ("ekfac", "joint", "name different tensors"),
        ("joint_core", "joint", "name different tensors"),
        ("joint_core", "ekfac", "name different tensors"),
    ],
)
def test_another_structure_than_the_tensors(tmp_path: Path, structure: str, stored: str, message: str) -> None:
    path = saved(fitted(structure), tmp_path / "p", structure=stored)
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(path, fitted(structure).blocks)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("", "does not list the blocks"),
        ("[]", "does not list the blocks"),
        ("3", "does not list the blocks"),
        ('[["x"]]', "does not list the blocks"),
        (f'["{BLOCK}", "{BLOCK}"]', "the posterior covers a block twice"),
        ('["mlp.lora_A"]', "the posterior covers 'mlp.lora_A', which the adapter has not"),
        (f'["{BLOCK}"]', "name different tensors, 36 in all"),
    ],
)
def test_blocks_that_cannot_be(tmp_path: Path, blocks: str, message: str) -> None:
    path = saved(fitted("ekfac"), tmp_path / "p", blocks=blocks)
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(path, fitted("ekfac").blocks)


def _replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def damage(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return damage


def _set(name: str, value: float) -> Damage:
    def damage(tensors: Tensors) -> None:
        tensors[name].view(-1)[0] = value

    return damage


def _drop(*names: str) -> Damage:
    def damage(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return damage


def _add_block(tensors: Tensors) -> None:
    for part in ("wide", "narrow", "scale", "tail"):
        tensors[f"model.layers.9.self_attn.q_proj.lora_A.{part}"] = tensors[f"{BLOCK}.{part}"].clone()


WIDE, NARROW, SCALE, TAIL = (f"{BLOCK}.{part}" for part in ("wide", "narrow", "scale", "tail"))
DIRECTIONS, VALUES = f"{BLOCK}.directions", "model.layers.0.self_attn.v_proj.lora_A.directions"
SKEWED = f"a basis of {BLOCK} is not orthonormal"
DAMAGE: dict[str, tuple[str, Damage, str]] = {
    "NaN in the basis": ("ekfac", _set(WIDE, torch.nan), f"{WIDE} holds NaN or infinity"),
    "NaN in the small basis": ("ekfac", _set(NARROW, torch.nan), f"{NARROW} holds NaN or infinity"),
    "NaN in the scale": ("ekfac", _set(SCALE, torch.nan), f"{SCALE} holds NaN or infinity"),
    "infinite tail": ("ekfac", _set(TAIL, torch.inf), f"{TAIL} holds NaN or infinity"),
    "negative scale": ("ekfac", _set(SCALE, -1e-3), f"{SCALE} holds a negative curvature"),
    "negative tail": ("ekfac", _set(TAIL, -1e-3), f"{TAIL} holds a negative curvature"),
    "other width": ("ekfac", _replace(WIDE, lambda t: t[:-1]), r"shape \(16, 4\), it is torch.float32 \(15, 4\)"),
    "other rank": ("ekfac", _replace(NARROW, lambda t: t[:2]), r"shape \(3, 3\), it is torch.float32 \(2, 3\)"),
    "other directions": ("ekfac", _replace(SCALE, lambda t: t[:3]), r"shape \(4, 3\), it is torch.float32 \(3, 3\)"),
    "scale transposed": ("ekfac", _replace(SCALE, lambda t: t.T), r"shape \(4, 3\), it is torch.float32 \(3, 4\)"),
    "tail of other columns": ("ekfac", _replace(TAIL, lambda t: t[:1]), r"shape \(3,\), it is torch.float32 \(1,\)"),
    "no columns": ("ekfac", _replace(WIDE, lambda t: t[:, :0]), r"shape \(16, 1\), it is torch.float32 \(16, 0\)"),
    "one dimension": ("ekfac", _replace(WIDE, lambda t: t.flatten()), r"it is torch.float32 \(64,\)"),
    "integers": ("ekfac", _replace(SCALE, lambda t: t.int()), r"should be a float tensor .* it is torch.int32"),
    "basis scaled": ("ekfac", _replace(WIDE, lambda t: 1.1 * t), SKEWED),
    "basis repeated": ("ekfac", _replace(WIDE, lambda t: t[:, [0, 0, 1, 2]]), SKEWED),
    "basis of zeros": ("ekfac", _replace(WIDE, torch.zeros_like), SKEWED),
    "small basis skewed": ("ekfac", _replace(NARROW, torch.ones_like), SKEWED),
    "part missing": ("ekfac", _drop(TAIL), f"name different tensors, 1 in all, such as '{TAIL}'"),
    "block missing": ("ekfac", _drop(WIDE, NARROW, SCALE, TAIL), f"different tensors, 4 in all, such as '{NARROW}'"),
    "block left over": ("ekfac", _add_block, "name different tensors, 4 in all, such as 'model.layers.9"),
    "NaN in the directions": ("joint", _set(DIRECTIONS, torch.nan), f"{DIRECTIONS} holds NaN or infinity"),
    "NaN in the factor": ("joint", _set("factor", torch.nan), "factor holds NaN or infinity"),
    "NaN in the core's basis": ("joint_core", _set(WIDE, torch.nan), f"{WIDE} holds NaN or infinity"),
    "fewer coordinates": (
        "joint",
        _replace(DIRECTIONS, lambda t: t[:, :-1]),
        r"directions should be a float tensor of shape \(5, 48\), it is torch.float32 \(5, 47\)",
    ),
    "fewer directions than its group": (
        "joint",
        _replace(VALUES, lambda t: t[:-1]),
        r"v_proj.lora_A.directions should be a float tensor of shape \(5, 48\), it is torch.float32 \(4, 48\)",
    ),
    "no directions": ("joint", _replace(DIRECTIONS, lambda t: t[:0]), r"of shape \(1, 48\), it is .* \(0, 48\)"),
    "flat directions": ("joint", _replace(DIRECTIONS, torch.flatten), r"of shape \(1, 48\), it is .* \(240,\)"),
    "coordinates of other bases": (
        "joint_core",
        _replace(WIDE, lambda t: t[:, :3]),
        r"directions should be a float tensor of shape \(5, 9\), it is torch.float32 \(5, 15\)",
    ),
    "core's basis scaled": ("joint_core", _replace(WIDE, lambda t: 1.1 * t), SKEWED),
    "directions scaled": ("joint", _replace(DIRECTIONS, lambda t: 2 * t), "directions of lora_A are not orthonormal"),
    "directions repeated": (
        "joint",
        _replace(DIRECTIONS, lambda t: t[[0, 0, 1, 2, 3]]),
        "the directions of lora_A are not orthonormal",
    ),
    "factor of other directions": (
        "joint",
        _replace("factor", lambda t: t[:, 1:]),
        r"factor should be a float tensor of shape \(5, 10\), it is torch.float32 \(5, 9\)",
    ),
    "factor of no rows": ("joint", _replace("factor", lambda t: t[:0]), r"of shape \(1, 10\), it is .* \(0, 10\)"),
    "factor with too many rows": (
        "joint",
        _replace("factor", lambda t: t.repeat(3, 1)),
        "15 rows, more than its 10 directions",
    ),
    "no factor": ("joint", _drop("factor"), "name different tensors, 1 in all, such as 'factor'"),
    "no bases": ("joint_core", _drop(WIDE), f"name different tensors, 1 in all, such as '{WIDE}'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_values_that_cannot_be(tmp_path: Path, name: str) -> None:
    structure, damage, message = DAMAGE[name]
    path = saved(fitted(structure), tmp_path / "p")
    _, metadata = posterior_tensors(fitted(structure), "float32")
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(path, fitted(structure).blocks)


@pytest.mark.parametrize("rows", [None, "", "many", "-3", "1.5", "²"])
def test_rows_that_are_no_number(file: Path, rows: str | None) -> None:
    _, metadata = posterior_tensors(fitted("ekfac"), "float32")
    del metadata["rows"]
    save_file(load_file(file), file, metadata | ({} if rows is None else {"rows": rows}))
    with pytest.raises(ArtifactCorruptError, match="does not say how many rows"):
        read_posterior(file, fitted("ekfac").blocks)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, 0.5, -1])
def test_a_truncated_file(file: Path, kept: float) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[: int(kept * len(raw)) if isinstance(kept, float) else kept])
    with pytest.raises(ArtifactCorruptError, match=r"posterior.safetensors cannot be read as safetensors"):
        read_posterior(file, fitted("ekfac").blocks)


@pytest.mark.parametrize("place", [0, 7, 8, 20, 100])
def test_a_damaged_header(file: Path, place: int) -> None:
    """Any one byte of the header at ``place`` set to 0xFF: refused, whichever check meets it first."""
    raw = bytearray(file.read_bytes())
    raw[place] = 0xFF
    file.write_bytes(raw)
    with pytest.raises(ArtifactCorruptError):
        read_posterior(file, fitted("ekfac").blocks)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorruptError, match="cannot be read"):
        read_posterior(tmp_path / "none", fitted("ekfac").blocks)


def test_a_posterior_of_another_adapter(file: Path) -> None:
    blocks = (Block("model.layers.0.mlp.up_proj.lora_A", "lora_A", 16, 3), *fitted("ekfac").blocks[1:])
    with pytest.raises(ArtifactCorruptError, match=r"the posterior covers 'model.*which the adapter has not"):
        read_posterior(file, blocks)


@pytest.mark.parametrize("name", ["NaN in the core's basis", "core's basis scaled"])
def test_the_server_refuses_it_behind_good_hashes(artifact_copy: Path, name: str) -> None:
    with safe_open(artifact_copy / POSTERIOR, framework="pt") as handle:
        metadata: dict[str, Any] = handle.metadata()
    tensors = load_file(artifact_copy / POSTERIOR)
    DAMAGE[name][1](tensors)
    save_file(tensors, artifact_copy / POSTERIOR, metadata)
    reseal(artifact_copy)
    with pytest.raises(ArtifactCorruptError, match=DAMAGE[name][2]):
        Predictor.load(artifact_copy, device="cpu")


def test_the_posterior_of_another_run(artifact_copy: Path, choices_run: FinishedRun) -> None:
    """Three classes against two: the label rows of lm_head differ."""
    shutil.copy(choices_run.artifact / POSTERIOR, artifact_copy / POSTERIOR)
    reseal(artifact_copy)
    with pytest.raises(ArtifactCorruptError, match=r"lm_head.lora_B.wide should be .* \(2, .*it is .* \(3, "):
        Predictor.load(artifact_copy, device="cpu")
