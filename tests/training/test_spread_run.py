"""A run with its base over two devices (emulated) trains, fits, measures and packages what a run on one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from alike_runs import check_alike, check_measured_alike
from emulated_devices import SECOND, TIED, emulated_devices
from tiny_runs import FinishedRun, sentiment_config

from laplora.errors import ConfigError
from laplora.models.spread import Spread
from training.__main__ import main
from training.config import BaseConfig, load_config
from training.finetune import LabelTrainer
from training.workspace.processes import own_spread

pytestmark = pytest.mark.process  # accelerate asks nvidia-smi for the kind of GPU


def spread(places: dict[str, str]) -> list[str]:
    """Return the flags of a run with that map."""
    return ["--set", "base.device=auto", "--set", f"base.device_map={json.dumps(places)}"]


@pytest.mark.exhaustive
def test_a_run_over_two_devices_has_the_results_of_one(
    sentiment_run: FinishedRun, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder)
    seen: set[torch.device] = set()
    compute = LabelTrainer.compute_loss

    def watched(self: LabelTrainer, model: torch.nn.Module, *arguments: object, **options: object) -> object:
        seen.update(p.device for p in model.parameters() if p.requires_grad)
        return compute(self, model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LabelTrainer, "compute_loss", watched)
    with emulated_devices():
        assert main(["run", "--config", str(file), *spread(TIED)]) == 0
    assert SECOND in seen
    config = load_config(file)
    check_alike(sentiment_run.config.run_dir, config.run_dir)
    check_measured_alike(sentiment_run.config.run_dir, config.run_dir)


def test_the_input_embedding_is_named_first(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sentiment_config(tmp_path, tiny_base_folder)
    with emulated_devices():
        assert main(["finetune", "--config", str(file), *spread({"model.norm": "cpu:1"} | TIED)]) == 1
    assert "name the module of the input embedding first" in capsys.readouterr().err
    assert main(["finetune", "--config", str(file), *spread({"": "cuda:99"})]) == 1
    assert "device_map needs 'cuda:99', and torch finds" in capsys.readouterr().err


def test_a_map_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseConfig(device_map="auto", max_memory={0: "20GiB", 1: "20GiB"})
    assert own_spread(base) == Spread("auto", ((0, "20GiB"), (1, "20GiB")))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"base\.device_map spreads the base over the GPUs of one process, and 4"):
        own_spread(base)
    assert own_spread(BaseConfig()) is None
