"""What a configuration leaves open of its training: epochs become steps, and the base's size says the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alike_runs import read
from tiny_runs import job, sentiment_config
from transformers import AutoModelForCausalLM

from laplora.errors import ConfigError, ModelError
from training.config import RunConfig, load_config
from training.config.size_defaults import SIZES, STEPS, size_defaults
from training.workspace.filled_in import filled_in, parameter_count


def configuration(**optimizer: Any) -> RunConfig:
    fields = {"name": "n", "data": {"dataset": "sst2"}, "fine_tune": True, "optimizer": optimizer}
    return RunConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("epochs", "rows", "batch_size", "steps"),
    [(1, 12, 6, 2), (1, 13, 6, 3), (3, 13, 6, 9), (0.5, 13, 6, 2), (0.01, 13, 6, 1), (2, 1, 6, 2)],
)
def test_epochs_are_so_many_steps(epochs: float, rows: int, batch_size: int, steps: int) -> None:
    """A last batch with fewer rows is a step, as in the Trainer's own epochs."""
    config = configuration(learning_rate=1e-3, epochs=epochs, batch_size=batch_size)
    made = filled_in(config, rows, lambda: pytest.fail("the base's size says nothing here"))
    assert (made.optimizer.step_count, made.optimizer.epochs) == (steps, None)


@pytest.mark.parametrize("parameters", [134_515_008, 1_500_000_000, 6_738_415_616])
def test_the_size_says_what_is_left_open_and_what_is_given_wins(
    parameters: int, capsys: pytest.CaptureFixture[str]
) -> None:
    size, optimizer = size_defaults(parameters), filled_in(configuration(), 300, lambda: parameters).optimizer
    assert optimizer.learning_rate == size.learning_rate
    assert optimizer.steps == (STEPS if size.epochs is None else 400)  # 8 epochs of 50 steps
    assert f"{parameters / 1e6:,.0f} million parameters: learning rate" in capsys.readouterr().out
    given = {"learning_rate": 0.5}, {"steps": 7}
    rate, length = (filled_in(configuration(**one), 300, lambda: parameters).optimizer for one in given)
    assert (rate.learning_rate, rate.steps) == (0.5, optimizer.steps)
    assert (length.learning_rate, length.steps) == (optimizer.learning_rate, 7)


def test_parameters_are_those_of_the_loaded_model(tiny_base_folder: Path) -> None:
    """The tied output embedding counts once."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base_folder)
    assert parameter_count(str(tiny_base_folder), None) == sum(p.numel() for p in model.parameters())
    with pytest.raises(ModelError, match=r"name optimizer\.learning_rate and optimizer\.steps"):
        parameter_count(str(tiny_base_folder.parent), None)


def test_a_run_in_epochs_ends_as_the_one_in_steps(tiny_base_folder: Path, tmp_path: Path) -> None:
    """Its record has the steps: it is the same run, in the same folder, and is not trained twice."""
    file = sentiment_config(tmp_path, tiny_base_folder, optimizer={"batch_size": 6, "epochs": 2})
    with pytest.raises(ConfigError, match=r"known with optimizer\.steps and learning_rate"):
        _ = load_config(file).run_dir
    assert job("finetune", file) == 0
    settings = ["optimizer.steps=14", f"optimizer.learning_rate={SIZES[0].learning_rate}"]
    in_steps = load_config(file, settings)  # 40 rows are 7 steps of 6
    assert in_steps.run_dir == in_steps.runs / "tiny-sentiment"
    end = read(in_steps.run_dir / "training_log.json")[-1]
    assert (end["step"], end["epoch"]) == (14, 2)
    recorded = read(in_steps.run_dir / "config.json")["optimizer"]
    assert (recorded["steps"], recorded["epochs"]) == (14, None)
    adapter = in_steps.run_dir / "adapter" / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    assert job("finetune", file, *settings) == 0
    assert adapter.stat().st_mtime_ns == before
