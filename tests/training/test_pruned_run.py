"""Runs on a base that loses layers: from the choice of the layers to the artifact that a server loads without them.

The base has five layers, of which 2 and 3 change little.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from alike_runs import read
from safetensors.torch import load_file, save_file
from serving import changed, code, settings, started
from tiny_runs import (
    FinishedRun,
    job,
    reseal,
    save_tiny_base,
    sentiment_config,
    sentiment_rows,
    write_rows,
)

from laplora.artifact.folder import read_artifact
from laplora.errors import ArtifactCorruptError, ConfigError, GoldenMismatchError, ModelError
from laplora.models.base import BaseSpec
from laplora.models.decoder_layers import decoder_layers
from laplora.models.shared_base import SharedBases
from laplora.predictor import Predictor
from service.app import create_app
from training.__main__ import main
from training.config import load_config
from training.config.student import DistilRequest
from training.distil import student_config
from training.evaluate import plain_probs
from training.fine_tuning.new_adapter import add_adapter
from training.workspace import pruning
from training.workspace.folds import fold_runs
from training.workspace.results import load_trained
from training.workspace.runtime import open_run, prepared_run

pytestmark = pytest.mark.anyio

LAYERS, QUIET = 5, (2, 3)
PRUNED = "base.prune_layers=2"
SMALL: dict[str, Any] = {"optimizer": {"learning_rate": 1e-2, "steps": 12, "batch_size": 6, "checkpoint_every": 4}}
TEXTS = [f"The {noun} was {word}." for noun in ("film", "plot", "cast") for word in ("superb", "dull")]


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the base of five layers."""
    folder = save_tiny_base(tmp_path_factory.mktemp("deep"), layers=LAYERS)
    weights = load_file(folder / "model.safetensors")
    for number, name in itertools.product(QUIET, ("self_attn.o_proj", "mlp.down_proj")):
        weights[f"model.layers.{number}.{name}.weight"] *= 0.05
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, deep_base: Path) -> FinishedRun:
    """A finished run without two layers, 4-bit weights."""
    folder = tmp_path_factory.mktemp("pruned")
    file = sentiment_config(folder, deep_base, name="pruned", **SMALL)
    assert job("run", file, PRUNED, "base.quantization=nf4") == 0
    return FinishedRun(file, load_config(file, [PRUNED, "base.quantization=nf4"]), deep_base)


@pytest.fixture(scope="module")
def predictor(pruned: FinishedRun) -> Predictor:
    """Its artifact, loaded as everybody loads it: the golden answers are replayed."""
    return Predictor.load(pruned.artifact, device="cpu")


@pytest.mark.exhaustive
async def test_a_server_gives_the_numbers_of_the_library_and_of_the_model_that_was_trained(
    pruned: FinishedRun, predictor: Predictor, tmp_path: Path
) -> None:
    """Beside it an artifact on another base cannot be loaded: the same base with all layers is another one."""
    manifest, kept = read_artifact(pruned.artifact).manifest, read(pruned.config.run_dir / pruning.REMOVED)
    assert manifest.config["base"]["prune_layers"] == 2
    assert manifest.base == BaseSpec(str(pruned.base), None, "nf4", "float32", None, QUIET)
    assert (tuple(kept["layers"]), kept["prompts"]) == (QUIET, 40)
    assert 0 < kept["distance"] < 0.05
    run = open_run(pruned.config)
    trained = plain_probs(run.classifier(load_trained(run)), run.splits.test, 8)
    expected = predictor.predict(run.encode(run.splits.test), "laplace")
    shutil.copytree(pruned.artifact, tmp_path / "pruned")
    whole = shutil.copytree(pruned.artifact, tmp_path / "whole")
    reseal(whole, name="whole", removed_layers=[])
    async with started(create_app(settings(artifact="pruned", artifacts_root=tmp_path, device="cpu"))) as client:
        inputs = [dict(example.fields) for example in run.splits.test]
        answer = (await client.post("/predict", json={"inputs": inputs, "options": {"predictive": "laplace"}})).json()
        response = await changed(client, "whole/load")
    for one, other, of_model in zip(answer["predictions"], expected, trained.tolist(), strict=True):
        assert one["probs"] == pytest.approx(other.probs, abs=1e-4)
        assert list(one["map_probs"].values()) == pytest.approx(of_model, abs=1e-4)
        assert one["logit_variance"] == pytest.approx(other.logit_variance, rel=1e-3)
    assert code(response) == (409, "artifact_incompatible")
    assert "(nf4, float32), the loaded ones on" in response.text
    assert "(nf4, float32, without layers [2, 3])" in response.text


@pytest.mark.parametrize(
    ("removed", "error", "message"),
    [
        ([], ArtifactCorruptError, "does not hold the LoRA matrices of this base"),
        # The adapter fits on these three layers as well: its answers tell.
        ([1, 2], GoldenMismatchError, "is not the one that was measured"),
        ([2, 9], ModelError, r"the layers to remove are \[2, 9\], expected ascending numbers below 5"),
    ],
)
def test_other_layers_are_refused(
    pruned: FinishedRun, tmp_path: Path, removed: list[int], error: type[Exception], message: str
) -> None:
    """Beside an artifact without the layers too: one base serves artifacts without the same layers alone."""
    folder, bases = shutil.copytree(pruned.artifact, tmp_path / "pruned"), SharedBases()
    one, other = (Predictor.load(pruned.artifact, device="cpu", bases=bases) for _ in range(2))
    assert one.base is other.base
    assert len(decoder_layers(one.base.model)) == LAYERS - len(QUIET)
    reseal(folder, removed_layers=removed)
    with pytest.raises(error, match=message):
        Predictor.load(folder, device="cpu", bases=bases)


def test_layers_are_checked_without_a_trace_chosen_once_for_all_folds_and_anew_for_other_rows(
    deep_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a fold is the first to load the base: all of a run stand on one."""
    file = sentiment_config(tmp_path, deep_base, name="folds", **SMALL)
    options, before = [PRUNED, "calibration.rows=cross_fit", "calibration.folds=2"], sorted(tmp_path.rglob("*"))
    assert main(["run", "--check", "--config", str(file), *(f"--set={option}" for option in options)]) == 0
    assert "layers 2 to 3 are removed, counted from 0: of 2 in a row the least change of" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    config = load_config(file, options)
    record = config.run_dir / pruning.REMOVED
    run = open_run(config)
    folds = fold_runs(run)
    assert folds[0].base_spec().removed_layers == QUIET
    first = read(record)
    assert folds[1].base_spec() == run.base_spec() == open_run(config).base_spec() == folds[0].base_spec()
    assert read(record) == first
    assert list(tmp_path.rglob(pruning.REMOVED)) == [record]
    assert capsys.readouterr().out.count("removed, counted from 0") == 1
    fold = folds[0].adapted(lambda base: add_adapter(base, config))
    assert len(decoder_layers(fold)) == LAYERS - 2
    write_rows(tmp_path / "reviews.jsonl", [row | {"text": row["text"].upper()} for row in sentiment_rows()])
    open_run(config).base_spec()
    assert read(record)["made_from"] != first["made_from"]


def test_a_number_of_layers_that_cannot_be_is_refused_before_anything_is_loaded(
    deep_base: Path, tmp_path: Path
) -> None:
    file = sentiment_config(tmp_path, deep_base, name="refused", **SMALL)
    for count in (LAYERS, 40):
        message = f"base.prune_layers is {count}, and the base model has 5 layers: remove 4 at most"
        with pytest.raises(ConfigError, match=message):
            prepared_run(load_config(file, [f"base.prune_layers={count}"]))
    assert prepared_run(load_config(file, [f"base.prune_layers={LAYERS - 1}"])).pruning is not None


def test_a_student_keeps_to_the_layers_of_its_teacher(pruned: FinishedRun, tmp_path: Path) -> None:
    inputs = write_rows(tmp_path / "inputs.jsonl", [{"text": f"{text} So it is."} for text in TEXTS])
    overrides = (f"data.path={pruned.config.data.path}", f"runs={tmp_path}")
    made = student_config(DistilRequest(pruned.artifact, inputs, overrides=overrides), read_artifact(pruned.artifact))
    assert open_run(made).base_spec() == read_artifact(pruned.artifact).manifest.base


@pytest.mark.exhaustive
def test_an_adapter_of_a_base_without_layers_gets_a_posterior(
    pruned: FinishedRun, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library saves and loads what the command line names; without it the adapter is refused by name."""
    rows, out = write_rows(tmp_path / "rows.jsonl", sentiment_rows()), tmp_path / "given"
    command = [
        "fit",
        "--adapter",
        str(pruned.config.run_dir / "adapter"),
        "--data",
        str(rows),
        "--calibration",
        "split",
        "--out",
        str(out),
    ]
    command += ["--template", "sentiment", "--quantization", "nf4", "--dtype", "float32", "--device", "cpu"]
    command += ["--max-tokens", "64", "--set=laplace.rank=4"]
    assert main(command) == 1
    assert "does not hold the LoRA matrices of this base" in capsys.readouterr().err
    assert main([*command, "--removed-layers", "2", "3"]) == 0
    loaded = Predictor.load(out, device="cpu")
    assert loaded.artifact.manifest.base == predictor.artifact.manifest.base
    for text in TEXTS:
        one, other = (p.predict([p.encode({"text": text}, truncate=False)], "map")[0] for p in (loaded, predictor))
        assert one.probs == pytest.approx(other.probs, abs=1e-5)
