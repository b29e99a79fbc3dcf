"""``laplora.fit`` on classification heads: fitted in memory, saved, loaded from files, the same numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from head_artifacts import save_base
from telling import assert_served_as_fitted
from tiny_classifiers import TARGETS, adapted_classifier, classifier_base, head_alone
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import laplora
from laplora.errors import ConfigError, ModelError
from laplora.fitting.priors import block_weights, squared_distances
from laplora.fitting.settings import FitSettings
from laplora.jacobians.contrasts import covered_blocks
from laplora.readouts.classification_head import ClassificationHead

LABELS = ["down", "up", "flat"]


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Return random rows of letters."""
    draw = random.Random(seed)
    return [
        {"text": " ".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 14))), "label": LABELS[i % 3]}
        for i in range(count)
    ]


def classifier_on_disk(folder: Path, kind: str, *, alone: bool) -> laplora.Classifier:
    """Return a classifier whose base was loaded from a folder, as a user's is."""
    whole = classifier_base(kind)
    base = save_base(folder / "base", whole, head=kind in ("deberta", "modernbert"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    donor = head_alone(kind, dtype=torch.float32) if alone else adapted_classifier(kind, dtype=torch.float32)
    if alone:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        model.load_state_dict(donor.state_dict())
        getattr(model, model.base_model_prefix).requires_grad_(False)
    else:
        donor.get_base_model().config._name_or_path = str(base)
        model = donor
    return laplora.Classifier(model, tokenizer, LABELS, "{text}", max_tokens=12)


@pytest.mark.parametrize(
    ("kind", "alone"), [("roberta", False), ("llama", False), ("modernbert", False), ("bert", True), ("deberta", True)]
)
def test_fitted_saved_and_loaded_it_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, alone: bool
) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    if kind == "deberta":  # of its head the last linear alone was trained
        base = head_alone(kind, dtype=torch.float32)
        assert base.pooler.dense.weight.requires_grad
    classifier = classifier_on_disk(tmp_path, kind, alone=alone)
    assert isinstance(classifier.readout, ClassificationHead)
    settings = FitSettings.model_validate({"laplace": {"joint_rank": 12}})
    posterior = laplora.fit(classifier, rows(30, 1), rows(24, 2), settings=settings, progress=False)
    assert posterior.evaluate(rows(20, 4)).evaluations["laplace"].rows == 20
    artifact = posterior.save(tmp_path / "artifact")
    predictor = assert_served_as_fitted(posterior, artifact, [{"text": row["text"]} for row in rows(6, 3)])
    assert (predictor.artifact.manifest.head_alone is not None) == alone
    assert (artifact / "head.safetensors").is_file() == alone


def test_the_priors_distances_take_the_head_with_its_bias(tmp_path: Path) -> None:
    classifier = classifier_on_disk(tmp_path, "bert", alone=True)
    blocks = covered_blocks(classifier.model, classifier.readout)
    layer = classifier.model.classifier
    expected = layer.weight.double().square().sum() + layer.bias.double().square().sum()
    torch.testing.assert_close(squared_distances(block_weights(classifier), blocks, None), expected.detach()[None])
    adapted = classifier_on_disk(tmp_path / "adapted", "roberta", alone=False)
    blocks = covered_blocks(adapted.model, adapted.readout)
    weights = block_weights(adapted)
    start = {name: weight - 0.5 for name, weight in weights.items()}
    moved = squared_distances(weights, blocks, start).tolist()
    assert moved == pytest.approx([0.25 * block.wide * block.narrow for block in blocks], rel=1e-6)


def test_a_model_that_does_not_fit_its_labels_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_base(tmp_path / "base", classifier_base("bert"), head=False))

    def classifier(model: Any, labels: list[str], **options: Any) -> laplora.Classifier:
        return laplora.Classifier(model, tokenizer, labels, "{text}", **{"max_tokens": 12} | options)

    model = adapted_classifier("bert", dtype=torch.float32)
    with pytest.raises(ModelError, match="the head has 3 classes, there are 2 labels"):
        classifier(model, LABELS[:2])
    with pytest.raises(ModelError, match="has positions for 64 tokens, max_tokens is 512: lower it"):
        classifier(model, LABELS, max_tokens=512)
    with pytest.raises(ConfigError, match="is read at its head, not by label_tokens"):
        classifier(model, LABELS, readout="label_tokens")
    keys = adapted_classifier("deberta", dtype=torch.float32, lora={"target_modules": ["key_proj"]})
    with pytest.raises(ModelError, match=f"choose adapter.targets among .*{TARGETS['deberta'][0]}"):
        classifier(keys, LABELS)
