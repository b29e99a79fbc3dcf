"""Adapters on one base: swapped in exactly, back afterwards, refused when they are another adapter's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_task

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.models.adapters import save_adapter
from laplora.models.readout import label_logits, last_hidden
from laplora.predictive.lora_weights import in_place, lora_parameters, read_weights


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lora_parameters(model).items()}


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture
def other() -> Any:
    """The same base, another adapter."""
    made = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():
        for parameter in lora_parameters(made).values():
            parameter.mul_(-0.5)
    return made


def logits(model: Any) -> torch.Tensor:
    task = tiny_task()
    with torch.no_grad():
        return label_logits(model, last_hidden(model, task.batch()), task.label_ids)


def test_a_member_in_place_is_that_adapter(model: Any, other: Any, tmp_path: Path) -> None:
    """Bit for bit, in logits and in Jacobians; and the model's own weights are back afterwards, bit for bit."""
    save_adapter(other, tmp_path / "m" / "adapter")
    weights = read_weights(model, tmp_path / "m" / "adapter")
    before, task = logits(model), tiny_task()
    blocks = find_blocks(model, len(task.label_ids))
    assert list(lora_parameters(model)) == [block.name for block in blocks]
    with in_place(lora_parameters(model), weights):
        assert torch.equal(logits(model), logits(other))
        got, want = (contrast_jacobians(m, task.batch(), task.label_ids, blocks).blocks for m in (model, other))
        assert all(torch.equal(one.jacobian, two.jacobian) for one, two in zip(got, want, strict=True))
    assert not torch.equal(before, logits(other))
    assert torch.equal(before, logits(model))


def test_a_member_of_another_adapter_is_refused(model: Any, other: Any, tmp_path: Path) -> None:
    folder = tmp_path / "m" / "adapter"
    with pytest.raises(ArtifactCorruptError, match=r"m/adapter cannot be read: FileNotFoundError"):
        read_weights(model, folder)
    save_adapter(other, folder)
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
