"""Fine-tuning runs on the one device that the configuration names, however many GPUs the machine has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import sentiment_config

from laplora.errors import ModelError
from laplora.models.base import resolve_device
from training.config import load_config
from training.finetune import finetune, training_arguments


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """On a machine that seems to have three GPUs, the numbers of those that were made current."""
    devices: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: devices.append(str(place)[-1]))
    return devices


@pytest.mark.parametrize(
    ("name", "place"), [("cuda:1", "cuda:1"), ("cuda", "cuda:0"), ("auto", "cuda:0"), ("cpu", "cpu")]
)
def test_one_device_of_three(name: str, place: str, current: list[str], tmp_path: Path, tiny_base_folder: Path) -> None:
    """Not the batch times three, no DataParallel, and not the first GPU where another one is named."""
    config = load_config(sentiment_config(tmp_path, tiny_base_folder))
    arguments = training_arguments(config, resolve_device(name), tmp_path / "out")
    assert arguments.device == torch.device(place)
    assert arguments.train_batch_size == config.optimizer.batch_size
    if place != "cpu":
        assert arguments.n_gpu == 1
        assert current[-1] == place[-1]
    with pytest.raises(ModelError, match="'cuda:3': the last CUDA device is 'cuda:2'"):
        resolve_device("cuda:3")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_fine_tuning_stays_on_the_last_gpu(tmp_path: Path, tiny_base_folder: Path, quantization: str) -> None:
    """On a machine with one GPU this is that one; with several, nothing is allocated on the others."""
    last = torch.cuda.device_count() - 1
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer={"steps": 4, "checkpoint_every": 4})
    overrides = [f"base.device=cuda:{last}", f"base.quantization={quantization}", "base.dtype=bfloat16"]
    before = [torch.cuda.memory_allocated(i) for i in range(last)]
    finetune(load_config(file, overrides))
    assert [torch.cuda.max_memory_allocated(i) for i in range(last)] == before
    assert torch.cuda.max_memory_allocated(last) > 0
