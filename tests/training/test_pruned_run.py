"""Runs on a base that loses layers: from the choice of the layers to the artifact that a server loads without them.

The base has five layers, of which 2 and 3 change little.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers as hf
from alike_runs import read
from serving import code, settings, started
from tiny_runs import (
    FinishedRun,
    adapter,
    interrupted_at,
    job,
    reseal,
    same,
    sentiment_config,
    sentiment_rows,
    write_rows,
)
from tiny_tokenizer import tiny_tokenizer

from laplora.artifact.folder import read_artifact
from laplora.errors import ArtifactCorruptError, ConfigError, GoldenMismatchError, ModelError
from laplora.models.base import BaseSpec
from laplora.models.decoder_layers import decoder_layers
from laplora.models.shared_base import SharedBases
from laplora.predictor import Predictor
from service.app import create_app
from training.__main__ import main
from training.config import load_config
from training.fine_tuning.new_adapter import add_adapter
from training.workspace import pruning
from training.workspace.folds import fold_runs
from training.workspace.results import load_trained
from training.workspace.runtime import open_run, prepared_run

pytestmark = pytest.mark.anyio

LAYERS, QUIET = 5, (2, 3)
PRUNED = "base.prune_layers=2"
SMALL: dict[str, Any] = {
    "optimizer": {"learning_rate": 1e-2, "steps": 12, "batch_size": 6, "checkpoint_every": 4},
    "predictives": {"serve": "laplace"},
}
TEXTS = [f"The {noun} was {word}." for noun in ("film", "plot", "cast") for word in ("superb", "dull")]


def save_base(folder: Path, config: Any, **options: Any) -> Path:
    """Write a random model with the tiny tokenizer, two of its layers quiet, and return the folder."""
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config(**sizes, **options), dtype=torch.float32)
    for number in QUIET if config is hf.LlamaConfig else ():
        layer = model.model.layers[number]
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data *= 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the base of five layers."""
    options = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
    }
    return save_base(tmp_path_factory.mktemp("deep"), hf.LlamaConfig, **options)


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
def test_the_loaded_artifact_answers_as_the_model_that_was_trained(pruned: FinishedRun, predictor: Predictor) -> None:
    manifest = read_artifact(pruned.artifact).manifest
    assert manifest.config["base"]["prune_layers"] == 2
    assert manifest.base == BaseSpec(str(pruned.base), None, "nf4", "float32", None, QUIET)
    kept = read(pruned.config.run_dir / pruning.REMOVED)
    assert (tuple(kept["layers"]), kept["prompts"]) == (QUIET, 40)
    assert 0 < kept["distance"] < 0.05
    run = open_run(pruned.config)
    classifier = run.classifier(load_trained(run))
    rows = [classifier.encode({"text": text}) for text in TEXTS]
    with torch.no_grad():
        logits = classifier.readout.scores(classifier.model, classifier.collate(rows)).logits
    answers = predictor.predict([predictor.encode({"text": text}, truncate=False) for text in TEXTS], "map")
    found = torch.tensor([answer.probs for answer in answers])
    torch.testing.assert_close(found, logits.softmax(-1).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
async def test_a_server_gives_the_numbers_of_the_library(
    pruned: FinishedRun, predictor: Predictor, sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    """Beside it an artifact on another base cannot be loaded: the same base with all layers is another one."""
    shutil.copytree(pruned.artifact, tmp_path / "pruned")
    whole = shutil.copytree(pruned.artifact, tmp_path / "whole")
    reseal(whole, name="whole", removed_layers=[])
    app = create_app(settings(artifact="pruned", artifacts_root=tmp_path, device="cpu"))
    async with started(app) as client:
        body = {"inputs": [{"text": text} for text in TEXTS], "options": {"predictive": "laplace"}}
        answer = (await client.post("/predict", json=body)).json()
        response = await client.post("/artifacts/whole/load")
    expected = predictor.predict([predictor.encode({"text": text}, truncate=False) for text in TEXTS], "laplace")
    for one, other in zip(answer["predictions"], expected, strict=True):
        assert list(one["probs"].values()) == pytest.approx(other.probs, abs=1e-4)
        assert list(one["map_probs"].values()) == pytest.approx(other.map_probs, abs=1e-4)
        assert one["logit_variance"] == pytest.approx(other.logit_variance, rel=1e-3)
    assert code(response) == (409, "artifact_incompatible")
    assert "(nf4, float32), the loaded ones on" in response.text
    assert "(nf4, float32, without layers [2, 3])" in response.text


@pytest.mark.exhaustive
def test_artifacts_share_a_base_without_the_same_layers_alone(pruned: FinishedRun) -> None:
    bases = SharedBases()
    one, other = (Predictor.load(pruned.artifact, device="cpu", bases=bases) for _ in range(2))
    assert one.base is other.base
    whole = bases.get(str(pruned.base), BaseSpec(str(pruned.base), None, "nf4", "float32"), "", device=one.device)
    assert len(decoder_layers(whole.model)) == LAYERS
    assert len(decoder_layers(one.base.model)) == LAYERS - 2


@pytest.mark.parametrize(
    ("removed", "error", "message"),
    [
        ([], ArtifactCorruptError, "does not hold the LoRA matrices of this base"),
        (
            [1, 2],
            GoldenMismatchError,
            "is not the one that was measured",
        ),  # the adapter fits on these three layers as well: its answers tell
        ([2, 9], ModelError, r"the layers to remove are \[2, 9\], expected ascending numbers below 5"),
    ],
)
def test_other_layers_are_refused(
    pruned: FinishedRun, tmp_path: Path, removed: list[int], error: type[Exception], message: str
) -> None:
    folder = shutil.copytree(pruned.artifact, tmp_path / "pruned")
    reseal(folder, removed_layers=removed)
    with pytest.raises(error, match=message):
        Predictor.load(folder, device="cpu")


@pytest.mark.exhaustive
def test_a_stopped_run_goes_on_without_these_layers_and_chooses_once(
    deep_base: Path, pruned: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctrl_c_interrupts: None
) -> None:
    """Its adapter is that of the run that was not stopped."""
    chosen = Mock(wraps=pruning.most_similar_block)
    monkeypatch.setattr(pruning, "most_similar_block", chosen)
    file = sentiment_config(tmp_path, deep_base, name="pruned", **SMALL)
    options = (PRUNED, "base.quantization=nf4")
    interrupted_at(7, file, *options)
    for name in ("finetune", "fit", "evaluate", "package"):
        assert job(name, file, *options) == 0
    assert chosen.call_count == 1
    folder = load_config(file, list(options)).run_dir
    assert same(adapter(folder), adapter(pruned.config.run_dir))


def test_other_rows_choose_anew(deep_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sentiment_config(tmp_path, deep_base, name="rows", **SMALL)
    config = load_config(file, [PRUNED])
    open_run(config).base_spec()
    first = read(config.run_dir / pruning.REMOVED)
    assert open_run(config).base_spec().removed_layers == QUIET
    assert capsys.readouterr().out.count("removed, counted from 0") == 1
    write_rows(tmp_path / "reviews.jsonl", [row | {"text": row["text"].upper()} for row in sentiment_rows()])
    open_run(config).base_spec()
    assert read(config.run_dir / pruning.REMOVED)["made_from"] != first["made_from"]


def test_folds_have_the_layers_of_their_run(deep_base: Path, tmp_path: Path) -> None:
    """Also where a fold is the first to load the base: all of a run stand on one."""
    file = sentiment_config(tmp_path, deep_base, name="folds", **SMALL)
    config = load_config(file, [PRUNED, "calibration.rows=cross_fit", "calibration.folds=2"])
    run = open_run(config)
    folds = fold_runs(run)
    assert folds[0].base_spec().removed_layers == QUIET
    before = read(config.run_dir / pruning.REMOVED)
    assert folds[1].base_spec() == run.base_spec() == folds[0].base_spec()
    assert read(config.run_dir / pruning.REMOVED) == before
    assert not [path for path in tmp_path.rglob(pruning.REMOVED) if path.parent != config.run_dir]
    fold = folds[0].adapted(lambda base: add_adapter(base, config))
    assert len(decoder_layers(fold)) == LAYERS - 2


def test_a_check_names_the_layers_and_writes_nothing(
    deep_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sentiment_config(tmp_path, deep_base, name="checked", **SMALL)
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", "--check", "--config", str(file), "--set", PRUNED]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "layers 2 to 3 are removed, counted from 0: of 2 in a row the least change of" in capsys.readouterr().out
    assert main(["run", "--check", "--config", str(file), "--set", "base.prune_layers=1"]) == 0
    assert "is removed, counted from 0: of 1 in a row" in capsys.readouterr().out


def test_a_number_of_layers_that_cannot_be_is_refused_before_anything_is_loaded(
    deep_base: Path, tmp_path: Path
) -> None:
    file = sentiment_config(tmp_path, deep_base, name="refused", **SMALL)
    with pytest.raises(ConfigError, match=r"base\.prune_layers: Input should be greater than or equal to 0"):
        load_config(file, ["base.prune_layers=-1"])
    for count in (LAYERS, 40):
        message = f"base.prune_layers is {count}, and the base model has 5 layers: remove 4 at most"
        with pytest.raises(ConfigError, match=message):
            prepared_run(load_config(file, [f"base.prune_layers={count}"]))
    assert prepared_run(load_config(file, [f"base.prune_layers={LAYERS - 1}"])).pruning is not None
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    hidden = save_base(tmp_path / "opt", hf.OPTConfig, word_embed_proj_dim=16, **sizes)
    with pytest.raises(ConfigError, match=r"base\.prune_layers: no layers can be removed \(OPTForCausalLM keeps its 2"):
        prepared_run(load_config(file, ["base.prune_layers=1", f"base.model={hidden}"]))


@pytest.mark.exhaustive
def test_later_labels_and_a_student_keep_to_the_layers(pruned: FinishedRun, tmp_path: Path) -> None:
    """``condition`` writes another version of the artifact; ``distil`` trains a student on the base without them."""
    folder = Path(shutil.copytree(pruned.artifact, tmp_path / "pruned"))
    labels = write_rows(
        tmp_path / "labels.jsonl", [row | {"text": f"{row['text']} Yes."} for row in sentiment_rows()[:24]]
    )
    assert main(["condition", "--artifact", str(folder), "--labels", str(labels), "--force", "--device", "cpu"]) == 0
    assert Predictor.load(folder, device="cpu").artifact.manifest.removed_layers == QUIET
    inputs = write_rows(tmp_path / "inputs.jsonl", [{"text": f"{text} So it is."} for text in TEXTS])
    overrides = [f"runs={tmp_path / 'runs'}", f"data.path={pruned.config.data.path}", "optimizer.steps=6"]
    shutil.copytree(pruned.artifact, tmp_path / "teacher")
    command = ["distil", "--artifact", str(tmp_path / "teacher"), "--inputs", str(inputs)]
    assert main([*command, *(f"--set={one}" for one in overrides)]) == 0
    (student,) = tmp_path.glob("teacher-*/manifest.json")
    assert Predictor.load(student.parent, device="cpu").artifact.manifest.removed_layers == QUIET


@pytest.mark.exhaustive
def test_an_adapter_of_a_base_without_layers_gets_a_posterior(
    pruned: FinishedRun, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library saves and loads what the command line names; without it the adapter is refused by name."""
    rows = write_rows(tmp_path / "rows.jsonl", sentiment_rows())
    command = ["fit", "--adapter", str(pruned.config.run_dir / "adapter"), "--data", str(rows)]
    command += ["--template", "sentiment"]
    command += ["--quantization", "nf4", "--dtype", "float32", "--device", "cpu", "--max-tokens", "64"]
    command += ["--set=laplace.rank=4", "--out", str(tmp_path / "given")]
    assert main([*command, "--removed-layers", "2", "3"]) == 0
    loaded = Predictor.load(tmp_path / "given", device="cpu")
    assert loaded.artifact.manifest.base == BaseSpec(str(pruned.base), None, "nf4", "float32", None, QUIET)
    for text in TEXTS:
        one, other = (p.predict([p.encode({"text": text}, truncate=False)], "map")[0] for p in (loaded, predictor))
        assert one.probs == pytest.approx(other.probs, abs=1e-5)
    capsys.readouterr()
    assert main(command) == 1
    assert "does not hold the LoRA matrices of this base" in capsys.readouterr().err
