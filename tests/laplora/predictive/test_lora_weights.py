"""Another adapter's weights in the place of a model's: it answers as that adapter, and afterwards as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_classifiers import adapted_classifier, batch_of, random_rows
from tiny_models import tiny_model, tiny_task

from laplora.errors import ArtifactCorruptError, ConfigError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.models.adapters import save_adapter
from laplora.predictive.lora_weights import in_place, lora_parameters, read_weights
from laplora.prompts.rows import Batch
from laplora.readouts.base import ReadOut
from laplora.readouts.classification_head import classification_head
from laplora.readouts.label_tokens import LabelTokens


def label_words() -> tuple[Any, ReadOut, Batch]:
    task = tiny_task()
    return tiny_model("llama"), LabelTokens(tuple(task.label_ids)), task.batch()


def head(kind: str) -> tuple[Any, ReadOut, Batch]:
    model = adapted_classifier(kind)
    readout = classification_head(model)
    return model, readout, batch_of(random_rows(), readout.side)


@pytest.mark.parametrize(
    "make", [label_words, lambda: head("llama"), lambda: head("deberta")], ids=["label words", "score", "deberta"]
)
def test_weights_in_place_are_that_adapter(make: Callable[[], tuple[Any, ReadOut, Batch]], tmp_path: Path) -> None:
    """Bit for bit, in logits and in Jacobians, a trained head too; and so are the model's own, afterwards."""
    (model, readout, batch), (other, _, _) = make(), make()

    def logits(of: Any) -> torch.Tensor:
        with torch.no_grad():
            return readout.scores(of, batch).logits

    with torch.no_grad():
        for parameter in lora_parameters(other).values():
            parameter.mul_(-0.5)
    save_adapter(other, tmp_path / "m" / "adapter")
    weights, parameters = read_weights(model, tmp_path / "m" / "adapter"), lora_parameters(model)
    before, kept = logits(model), {name: p.detach().clone() for name, p in parameters.items()}
    blocks = find_blocks(model, batch.class_mask.shape[1])
    with in_place(parameters, weights):
        assert torch.equal(logits(model), logits(other))
        got, want = (contrast_jacobians(m, batch, readout, blocks).blocks for m in (model, other))
        assert all(torch.equal(one.jacobian, two.jacobian) for one, two in zip(got, want, strict=True))
    assert not torch.equal(before, logits(other))
    with pytest.raises(KeyboardInterrupt), in_place(parameters, weights):
        raise KeyboardInterrupt
    assert all(torch.equal(kept[name], p) for name, p in lora_parameters(model).items())
    assert torch.equal(before, logits(model))
    name, weight = next(iter(weights.items()))
    for wrong in ({name: weight.T}, {name: weight.half()}, {"model.nowhere.lora_A": weight}):
        with pytest.raises(ConfigError, match="do not fit"), in_place(parameters, wrong):
            pytest.fail("must not be entered")


def test_a_member_of_another_adapter_is_refused(tmp_path: Path) -> None:
    model, folder = tiny_model("llama"), tmp_path / "m" / "adapter"
    with pytest.raises(ArtifactCorruptError, match=r"m/adapter cannot be read: FileNotFoundError"):
        read_weights(model, folder)
    save_adapter(model, folder)
    config, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    good = json.loads(config.read_text())
    config.write_text(json.dumps(good | {"lora_alpha": 99}))
    with pytest.raises(ArtifactCorruptError, match="has another lora_alpha"):
        read_weights(model, folder)
    config.write_text(json.dumps(good))
    tensors = load_file(file)
    key = next(iter(tensors))
    for change, message in (
        ({key: tensors[key] * torch.nan}, "holds NaN or infinity"),
        ({key: tensors[key][:, :-1].contiguous()}, "should be"),
        ({"surplus": tensors[key].clone()}, "not expected"),
    ):
        save_file(tensors | change, file)
        with pytest.raises(ArtifactCorruptError, match=message):
            read_weights(model, folder)
    file.write_bytes(b"\x00" * 7)
    with pytest.raises(ArtifactCorruptError, match=r"cannot be read: SafetensorError"):
        read_weights(model, folder)
