"""Artifacts of classification heads: loaded from files alone, with the numbers of the model in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from head_artifacts import TEXTS, load, pack, save_base
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from tiny_classifiers import adapted_classifier, classifier_base, head_alone
from tiny_runs import reseal
from transformers import PreTrainedTokenizerFast

from laplora.artifact.manifest import HEAD
from laplora.errors import ArtifactCorruptError, ModelError
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.shared_base import SharedBases
from laplora.readouts.classification_head import classification_head

FLOAT32 = {"dtype": torch.float32, "classes": 2}
MADE: dict[str, tuple[Any, Path]] = {}


def made(kind: str, factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a classifier and its artifact: ``KIND`` with LoRA, or ``KIND alone``; made once."""
    if kind not in MADE:
        folder, name = factory.mktemp("heads"), kind.split()[0]
        alone = kind.endswith("alone")
        base = save_base(folder / "base", classifier_base(name, classes=2), head=kind == "deberta alone")
        model = (head_alone if alone else adapted_classifier)(name, **FLOAT32)
        MADE[kind] = model, pack(folder / "artifact", base, model)
    return MADE[kind]


@pytest.mark.parametrize("kind", ["llama", "roberta", "deberta alone", "llama alone"])
def test_an_artifact_answers_as_the_model_in_memory(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model, artifact = made(kind, tmp_path_factory)
    predictor = load(artifact)  # replays its golden answers
    tokenizer = PreTrainedTokenizerFast.from_pretrained(artifact.parent / "base")
    rows = [predictor.encode(inputs, truncate=True) for inputs in TEXTS]
    assert [row.truncated for row in rows] == [False, False, True]
    assert [list(row.token_ids) for row in rows[:2]] == [tokenizer.encode(inputs["text"]) for inputs in TEXTS[:2]]
    side = predictor.artifact.manifest.readout.side
    assert (rows[2].token_ids[0], rows[2].token_ids[-1]) == (1, 2)
    assert rows[2].token_ids[1] == (4 + 5 if side == "right" else 4 + 7)
    together = predictor.predict(rows, "laplace", also=["map"])
    for row, answer in zip(rows, together, strict=True):
        ids = torch.tensor([row.token_ids])
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0].double().softmax(-1)
        torch.testing.assert_close(torch.tensor(answer.arrays.map_probs), expected, rtol=1e-4, atol=1e-5)
        assert answer.label_mass == 1
        assert min(answer.logit_variance) > 0
        assert predictor.predict([row], "laplace")[0].probs == pytest.approx(answer.probs, abs=1e-5)


def test_artifacts_of_one_base_share_it_and_keep_their_heads(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, artifact = made("roberta", tmp_path_factory)
    other = adapted_classifier("roberta", **FLOAT32)
    with torch.no_grad():
        other.get_base_model().classifier.modules_to_save["default"].out_proj.bias += 1.0
    second = pack(artifact.parent / "second", artifact.parent / "base", other)
    bases = SharedBases()
    one, two = (load(path, bases=bases) for path in (artifact, second))
    assert one.base is two.base
    head = model.get_base_model().classifier.modules_to_save["default"].out_proj.bias
    assert torch.equal(one._adapted.parameters["classifier.out_proj.bias"], head)
    assert torch.equal(two._adapted.parameters["classifier.out_proj.bias"], head + 1.0)
    # Nor does a head alone write into the base.
    model, artifact = made("llama alone", tmp_path_factory)
    kept = load(artifact, bases=bases)
    before = kept.base.model.score.weight.clone()
    load(artifact, bases=bases)
    assert torch.equal(kept.base.model.score.weight, before)
    assert torch.equal(kept._adapted.parameters["score.weight"], model.score.weight)
    assert not torch.equal(before, model.score.weight)


@pytest.fixture
def damaged(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of an artifact to damage."""
    return lambda kind: Path(shutil.copytree(made(kind, tmp_path_factory)[1], tmp_path / "artifact"))


def refused(folder: Path, message: str, **changes: Any) -> None:
    """Seal a damaged artifact, with these changes of its manifest, and load it in vain."""
    reseal(folder, **changes)
    with pytest.raises((ArtifactCorruptError, ModelError), match=message):
        load(folder)


def readout_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["readout"]


def test_a_head_alone_must_be_whole_and_the_manifests(damaged: Callable[[str], Path]) -> None:
    folder = damaged("llama alone")
    readout = readout_of(folder)
    # Of rows padded on the other side the head would be read at padding.
    message = "rows padded on the left; the manifest says 'score' and right"
    refused(folder, message, readout=readout | {"side": "right"})
    with pytest.raises(ValidationError, match="a trained linear is named twice"):
        reseal(folder, readout=readout | {"trained": ["score", "score"]})
    reseal(folder, readout=readout)
    whole = load_file(folder / HEAD)
    for tensors, message in (
        (whole | {"other": torch.zeros(1)}, "name different tensors"),
        ({"score.weight": torch.zeros(3, 16)}, "should be finite floats"),
        ({"score.weight": torch.full_like(whole["score.weight"], torch.nan)}, "should be finite floats"),
    ):
        save_file(tensors, folder / HEAD)
        refused(folder, message)
    (folder / HEAD).write_bytes(b"no safetensors")
    refused(folder, "cannot be read")
    (folder / HEAD).unlink()
    refused(folder, r"files missing \['head.safetensors'\]")


def test_an_adapters_head_must_be_whole_and_the_manifests(damaged: Callable[[str], Path]) -> None:
    folder = damaged("roberta")
    readout = readout_of(folder)
    refused(folder, "the manifest says", readout=readout | {"trained": ["classifier.out_proj"]})
    refused(folder, "has positions for 63 tokens, max_tokens is 64: lower it", readout=readout, max_tokens=64)
    file, settings = folder / "adapter" / "adapter_model.safetensors", folder / "adapter" / "adapter_config.json"
    whole, fields = file.read_bytes(), json.loads(settings.read_text())
    save_file({name: t for name, t in load_file(file).items() if "out_proj.bias" not in name}, file)
    refused(folder, r"base_model.model.classifier.out_proj.bias", max_tokens=12)
    # Without ``modules_to_save`` PEFT would copy the tensor over the base's own head, which others share.
    file.write_bytes(whole)
    settings.write_text(json.dumps(fields | {"modules_to_save": None, "task_type": None}))
    refused(folder, "not expected")


def test_a_part_of_the_head_that_nobody_saved_is_refused(tmp_path: Path) -> None:
    """PEFT trains and saves ``classifier`` alone, and DeBERTa's pooler starts at random where a checkpoint lacks it."""
    base = save_base(tmp_path / "base", classifier_base("deberta", classes=2), head=False)
    model = adapted_classifier("deberta", **FLOAT32)
    with pytest.raises(ModelError, match=r"pooler\.dense\.bias is not in the base's checkpoint"):
        pack(tmp_path / "artifact", base, model)
    whole = adapted_classifier("deberta", lora={"modules_to_save": ["pooler"]}, **FLOAT32)
    readout = classification_head(whole)
    assert readout.trained == ("pooler.dense", "classifier")
    load(pack(tmp_path / "whole", base, whole))


def test_bases_load_as_classifiers_and_are_checked(tmp_path: Path) -> None:
    model = classifier_base("bert", classes=5)
    folder = save_base(tmp_path / "base", model, head=True)

    def loaded(classes: int) -> Any:
        spec = BaseSpec(str(folder), None, "none", "float32", classes)
        return load_base_model(str(folder), spec, device=torch.device("cpu"))

    base = loaded(3)
    assert (base.model.config.num_labels, base.missing) == (3, {"classifier.weight", "classifier.bias"})
    assert not loaded(5).missing
    spec = BaseSpec(str(folder), classes=5)
    packed = load_base_model(str(folder), spec, device=torch.device("cpu"), dequantize=False)
    assert packed.weights.held == "packed"
    assert packed.model.classifier.weight.dtype == torch.bfloat16  # in 4 bit nothing of it could be covered
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    folder = save_base(tmp_path / "broken", model, head=True)
    with pytest.raises(ModelError, match="gives NaN or infinity on ordinary tokens"):
        loaded(5)
