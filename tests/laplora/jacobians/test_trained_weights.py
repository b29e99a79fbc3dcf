"""Each block's trained weight and its distance from the start, from memory and from PEFT's own file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_classifiers import adapted_classifier, head_alone

from laplora.errors import ModelError
from laplora.jacobians.contrasts import covered_blocks
from laplora.jacobians.trained_weights import squared_distances, trained_weights
from laplora.models.head_file import save_head
from laplora.readouts.classification_head import classification_head


def test_weights_in_memory_are_those_that_peft_saves(tmp_path: Path) -> None:
    model = adapted_classifier("roberta", dtype=torch.float32)
    readout = classification_head(model)
    model.save_pretrained(tmp_path)
    saved, held = load_file(tmp_path / "adapter_model.safetensors"), trained_weights(model, readout.trained)
    assert saved.keys() == held.keys()
    assert all(torch.equal(saved[name], held[name]) for name in saved)


def test_a_head_alone_is_at_its_own_distance_from_zero(tmp_path: Path) -> None:
    model = head_alone("bert", dtype=torch.float32)
    readout = classification_head(model)
    blocks = covered_blocks(model, readout)
    expected = model.classifier.weight.double().square().sum() + model.classifier.bias.double().square().sum()
    save_head(model, readout.trained, tmp_path / "head.safetensors")
    for weights in (trained_weights(model, readout.trained), load_file(tmp_path / "head.safetensors")):
        torch.testing.assert_close(squared_distances(blocks, weights), expected.detach()[None])


def test_distances_are_from_the_start_where_it_is_known() -> None:
    model = adapted_classifier("roberta")
    readout = classification_head(model)
    blocks = covered_blocks(model, readout)
    end = trained_weights(model, readout.trained)
    start = {name: weight - 0.5 for name, weight in end.items()}
    found = squared_distances(blocks, end, start)
    assert found.tolist() == pytest.approx([0.25 * block.wide * block.narrow for block in blocks])
    lora = {name: weight for name, weight in start.items() if "lora_" in name}
    partly = squared_distances(blocks, end, lora)
    assert torch.equal(partly[:-2], found[:-2])
    assert torch.equal(partly[-2:], squared_distances(blocks, end)[-2:])
    with pytest.raises(ModelError, match="hold nothing of"):
        squared_distances(blocks, {})
    with pytest.raises(ModelError, match="started with the shape"):
        squared_distances(blocks, end, {name: weight[:1] for name, weight in start.items()})
