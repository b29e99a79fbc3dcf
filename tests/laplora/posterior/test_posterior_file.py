"""The posterior's file: what is written is read, and every way of being wrong is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_path import fit, model_pass
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_task
from tiny_runs import FinishedRun, reseal

from laplora.artifact.manifest import POSTERIOR
from laplora.errors import ArtifactCorruptError
from laplora.jacobians.blocks import Block
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.posterior.base import Posterior, Prior, block_precisions
from laplora.posterior.eigen import EigenPosterior
from laplora.posterior.file import posterior_tensors, read_posterior
from laplora.posterior.structures import STRUCTURES, StructureSettings, fit_posterior
from laplora.posterior.subset import select_blocks
from laplora.predictor import Predictor

Tensors = dict[str, torch.Tensor]
#: Of the Llama model: its first block, kept 4 of 16 directions, LoRA rank 3.
BLOCK = "model.layers.0.self_attn.q_proj.lora_A"


@pytest.fixture(scope="module")
def posterior() -> EigenPosterior:
    return fit(tiny_model("llama"), tiny_task(), batch_size=8, rank=4).posterior


@pytest.fixture
def file(posterior: EigenPosterior, tmp_path: Path) -> Path:
    tensors, metadata = posterior_tensors(posterior, "float32")
    save_file(tensors, tmp_path / "posterior.safetensors", metadata)
    return tmp_path / "posterior.safetensors"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_a_round_trip(posterior: EigenPosterior, tmp_path: Path, dtype: str, tolerance: float) -> None:
    """Tolerances: rounding of the format (2^-24 and 2^-8), times a little for the new orthonormalisation."""
    tensors, metadata = posterior_tensors(posterior, dtype)  # type: ignore[arg-type]
    save_file(tensors, tmp_path / "p", metadata)
    read = read_posterior(tmp_path / "p", posterior.blocks)
    assert (read.blocks, read.rows) == (posterior.blocks, posterior.rows)
    for part in ("wide", "narrow"):
        for got, want in zip(getattr(read, part), getattr(posterior, part), strict=True):
            assert got.dtype == torch.float64
            assert float((got - want).abs().max()) < tolerance
            assert float((got.T @ got - torch.eye(got.shape[1])).abs().max()) < 1e-12
    for part in ("scale", "tail"):
        for got, want in zip(getattr(read, part), getattr(posterior, part), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_trip_changes_nothing(posterior: EigenPosterior, tmp_path: Path, dtype: str) -> None:
    """What is read again after being read and written is the same, so copies of copies do not drift."""
    trips = [posterior]
    for number in range(2):
        tensors, metadata = posterior_tensors(trips[-1], dtype)  # type: ignore[arg-type]
        save_file(tensors, tmp_path / str(number), metadata)
        trips.append(read_posterior(tmp_path / str(number), posterior.blocks))
    for one, two in zip(trips[1].wide + trips[1].scale, trips[2].wide + trips[2].scale, strict=True):
        # half a unit of the format: the bases were rounded once more
        torch.testing.assert_close(
            one, two, rtol=0 if dtype == "float32" else 1e-2, atol=1e-6 if dtype == "float32" else 1e-2
        )


def fitted(structure: str, subset: str = "all") -> Posterior:
    model, task = tiny_model("llama"), tiny_task()
    blocks = select_blocks(find_blocks(model, task.classes), subset)
    settings = StructureSettings(structure, rank=4, oversampling=4, joint_rank=5)
    return fit_posterior(settings, blocks, model_pass(model, task, blocks, tokens=True))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("subset", ["all", "values_b"])
def test_every_structure_and_subset_answers_the_same_when_read(structure: str, subset: str, tmp_path: Path) -> None:
    model, task = tiny_model("llama"), tiny_task(examples=4, seed=9)
    before = fitted(structure, subset)
    tensors, metadata = posterior_tensors(before, "float32")
    assert metadata["structure"] == structure
    save_file(tensors, tmp_path / "p", metadata)
    read = read_posterior(tmp_path / "p", find_blocks(model, task.classes))
    assert (type(read), read.structure, read.rows) == (type(before), structure, 24)
    assert read.blocks == before.blocks
    assert len(read.blocks) == {"all": 10, "values_b": 2}[subset]
    precisions = block_precisions(Prior("scalar", {"all": 0.5}), read.blocks)
    jacobians = contrast_jacobians(model, task.batch(), task.label_ids, read.blocks)
    expected = before.covariance_of(jacobians, precisions)
    # Bases and directions come back to a rounding of float32, and the curvature in float32.
    torch.testing.assert_close(
        read.covariance_of(jacobians, precisions), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    for name in ("log_determinant_ratio", "effective_dimension"):
        torch.testing.assert_close(
            getattr(read, name)(precisions), getattr(before, name)(precisions), rtol=1e-5, atol=1e-9
        )


def test_a_file_of_before_there_were_structures(posterior: EigenPosterior, file: Path) -> None:
    """Only ``rows`` and ``factor_dtype``: all blocks, in the one form that there was."""
    save_file(load_file(file), file, {"rows": "24", "factor_dtype": "float32"})
    read = read_posterior(file, posterior.blocks)
    assert (read.structure, read.blocks) == ("ekfac", posterior.blocks)


@pytest.mark.parametrize("structure", ["", "swag", "EKFAC"])
def test_a_structure_that_is_not_known(posterior: EigenPosterior, file: Path, structure: str) -> None:
    _, metadata = posterior_tensors(posterior, "float32")
    save_file(load_file(file), file, metadata | {"structure": structure})
    with pytest.raises(ArtifactCorruptError, match=f"structure '{structure}', which this version does not know"):
        read_posterior(file, posterior.blocks)


@pytest.mark.parametrize("structure", ["diagonal", "joint"])
def test_a_structure_of_other_tensors(posterior: EigenPosterior, file: Path, structure: str) -> None:
    _, metadata = posterior_tensors(posterior, "float32")
    save_file(load_file(file), file, metadata | {"structure": structure})
    with pytest.raises(ArtifactCorruptError, match="name different tensors"):
        read_posterior(file, posterior.blocks)


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
def test_blocks_that_cannot_be(posterior: EigenPosterior, file: Path, blocks: str, message: str) -> None:
    _, metadata = posterior_tensors(posterior, "float32")
    save_file(load_file(file), file, metadata | {"blocks": blocks})
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(file, posterior.blocks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t * -1, f"{BLOCK}.diagonal holds a negative curvature"),
        (lambda t: t * torch.nan, f"{BLOCK}.diagonal holds NaN or infinity"),
        (lambda t: t.T, r"diagonal should be a float tensor of shape \(16, 3\), it is torch.float32 \(3, 16\)"),
        (lambda t: t.flatten(), r"it is torch.float32 \(48,\)"),
        (lambda t: t.int(), "it is torch.int32"),
        (None, f"name different tensors, 1 in all, such as '{BLOCK}.diagonal'"),
    ],
)
def test_diagonals_that_cannot_be(tmp_path: Path, change: Any, message: str) -> None:
    posterior = fitted("diagonal")
    tensors, metadata = posterior_tensors(posterior, "bfloat16")
    name = f"{BLOCK}.diagonal"
    assert tensors[name].dtype == torch.float32  # curvature, whatever the format of what multiplies Jacobians
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, tmp_path / "posterior.safetensors", metadata)
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(tmp_path / "posterior.safetensors", posterior.blocks)


def _set(part: str, value: float) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[f"{BLOCK}.{part}"].view(-1)[0] = value

    return damage


def _replace(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[f"{BLOCK}.{part}"] = change(tensors[f"{BLOCK}.{part}"]).contiguous()

    return damage


def _drop_part(tensors: Tensors) -> None:
    del tensors[f"{BLOCK}.tail"]


def _drop_block(tensors: Tensors) -> None:
    for part in ("wide", "narrow", "scale", "tail"):
        del tensors[f"{BLOCK}.{part}"]


def _add_block(tensors: Tensors) -> None:
    for part in ("wide", "narrow", "scale", "tail"):
        tensors[f"model.layers.9.self_attn.q_proj.lora_A.{part}"] = tensors[f"{BLOCK}.{part}"].clone()


DAMAGE: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "NaN in the basis": (_set("wide", torch.nan), f"{BLOCK}.wide holds NaN or infinity"),
    "NaN in the small basis": (_set("narrow", torch.nan), f"{BLOCK}.narrow holds NaN or infinity"),
    "NaN in the scale": (_set("scale", torch.nan), f"{BLOCK}.scale holds NaN or infinity"),
    "infinite tail": (_set("tail", torch.inf), f"{BLOCK}.tail holds NaN or infinity"),
    "negative scale": (_set("scale", -1e-3), f"{BLOCK}.scale holds a negative curvature"),
    "negative tail": (_set("tail", -1e-3), f"{BLOCK}.tail holds a negative curvature"),
    "other width": (_replace("wide", lambda t: t[:-1]), r"shape \(16, 4\), it is torch.float32 \(15, 4\)"),
    "other rank": (_replace("narrow", lambda t: t[:2]), r"shape \(3, 3\), it is torch.float32 \(2, 3\)"),
    "scale of other directions": (_replace("scale", lambda t: t[:3]), r"shape \(4, 3\), it is torch.float32 \(3, 3\)"),
    "scale transposed": (_replace("scale", lambda t: t.T), r"shape \(4, 3\), it is torch.float32 \(3, 4\)"),
    "tail of other columns": (_replace("tail", lambda t: t[:1]), r"shape \(3,\), it is torch.float32 \(1,\)"),
    "no directions": (_replace("wide", lambda t: t[:, :0]), r"shape \(16, 1\), it is torch.float32 \(16, 0\)"),
    "one dimension": (_replace("wide", lambda t: t.flatten()), r"it is torch.float32 \(64,\)"),
    "integers": (_replace("scale", lambda t: t.int()), r"should be a float tensor .* it is torch.int32"),
    "basis scaled": (_replace("wide", lambda t: 1.1 * t), f"a basis of {BLOCK} is not orthonormal"),
    "basis repeated": (_replace("wide", lambda t: t[:, [0, 0, 1, 2]]), f"a basis of {BLOCK} is not orthonormal"),
    "basis of zeros": (_replace("wide", torch.zeros_like), f"a basis of {BLOCK} is not orthonormal"),
    "small basis skewed": (_replace("narrow", torch.ones_like), f"a basis of {BLOCK} is not orthonormal"),
    "part missing": (_drop_part, f"name different tensors, 1 in all, such as '{BLOCK}.tail'"),
    "block missing": (_drop_block, f"name different tensors, 4 in all, such as '{BLOCK}.narrow'"),
    "block left over": (_add_block, "name different tensors, 4 in all, such as 'model.layers.9"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_values_that_cannot_be(posterior: EigenPosterior, file: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, {"rows": "24", "factor_dtype": "float32"})
    with pytest.raises(ArtifactCorruptError, match=message):
        read_posterior(file, posterior.blocks)


@pytest.mark.parametrize("rows", [None, "", "many", "-3", "1.5", "²"])
def test_rows_that_are_no_number(posterior: EigenPosterior, file: Path, rows: str | None) -> None:
    save_file(load_file(file), file, {"factor_dtype": "float32"} | ({} if rows is None else {"rows": rows}))
    with pytest.raises(ArtifactCorruptError, match="does not say how many rows"):
        read_posterior(file, posterior.blocks)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, 0.5, -1])
def test_a_truncated_file(posterior: EigenPosterior, file: Path, kept: float) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[: int(kept * len(raw)) if isinstance(kept, float) else kept])
    with pytest.raises(ArtifactCorruptError, match=r"posterior.safetensors cannot be read as safetensors"):
        read_posterior(file, posterior.blocks)


@pytest.mark.parametrize("place", [0, 7, 8, 20, 100])
def test_a_damaged_header(posterior: EigenPosterior, file: Path, place: int) -> None:
    """Any one byte of the header at ``place`` set to 0xFF: refused, whichever check meets it first."""
    raw = bytearray(file.read_bytes())
    raw[place] = 0xFF
    file.write_bytes(raw)
    with pytest.raises(ArtifactCorruptError):
        read_posterior(file, posterior.blocks)


def test_a_file_that_is_not_there(posterior: EigenPosterior, tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorruptError, match="cannot be read"):
        read_posterior(tmp_path / "none", posterior.blocks)


def test_a_posterior_of_another_adapter(posterior: EigenPosterior, file: Path) -> None:
    blocks = (Block("model.layers.0.mlp.up_proj.lora_A", "lora_A", 16, 3), *posterior.blocks[1:])
    with pytest.raises(ArtifactCorruptError, match=r"the posterior covers 'model.*which the adapter has not"):
        read_posterior(file, blocks)


@pytest.mark.parametrize("name", ["NaN in the basis", "basis scaled"])
def test_the_server_refuses_it_behind_good_hashes(artifact_copy: Path, name: str) -> None:
    with safe_open(artifact_copy / POSTERIOR, framework="pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(artifact_copy / POSTERIOR)
    DAMAGE[name][0](tensors)
    save_file(tensors, artifact_copy / POSTERIOR, metadata)
    reseal(artifact_copy)
    with pytest.raises(ArtifactCorruptError, match=DAMAGE[name][1]):
        Predictor.load(artifact_copy, device="cpu")


def test_the_posterior_of_another_run(artifact_copy: Path, choices_run: FinishedRun) -> None:
    """Three classes against two: the label rows of lm_head differ."""
    shutil.copy(choices_run.artifact / POSTERIOR, artifact_copy / POSTERIOR)
    reseal(artifact_copy)
    with pytest.raises(ArtifactCorruptError, match=r"lm_head.lora_B.wide should be .* \(2, .*it is .* \(3, "):
        Predictor.load(artifact_copy, device="cpu")
