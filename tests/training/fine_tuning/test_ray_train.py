"""Processes of a real Ray Train train what one process does, and a run that lost one of them goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from alike_runs import check_alike, read
from ray_processes import finetune_and_die, refuse
from tiny_runs import sentiment_config

from laplora.errors import ConfigError, LaploraError
from laplora.execution.ray_cluster import cluster
from training.__main__ import main
from training.config import load_config
from training.finetune import finetune
from training.workspace.ray_train import RayProcesses, run_by_ray

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TESTS = Path(__file__).parents[2]
SPREAD = str(TESTS.parent / "training" / "configs" / "sst2-smollm2.yaml")
NONE, ONE = ("--config", "none.yaml"), ("--launcher", "ray", "--workers", "1")
PLAIN = {"learning_rate": 1e-2, "steps": 8, "batch_size": 6, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One cluster of this machine, whose processes find this checkout and ``ray_processes``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS.parent}{os.pathsep}{TESTS}")
        with cluster(2, show_output=True):
            yield


@pytest.mark.usefixtures("ray")
def test_a_run_that_lost_a_process_goes_on_to_what_one_process_has(tiny_base_folder: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        sentiment_config(folder, tiny_base_folder, optimizer=PLAIN)
    one, two = (load_config(folder / "sentiment.yaml") for folder in folders)
    threads = torch.get_num_threads()
    assert main(["finetune", "--config", str(folders[0] / "sentiment.yaml")]) == 0

    with pytest.raises(LaploraError, match="process 1 ended"):
        run_by_ray(partial(finetune_and_die, two, batch=7), "cpu", RayProcesses(2))
    (left,) = (two.run_dir / "checkpoints").glob("checkpoint-*")
    assert left.name == "checkpoint-4"
    assert not (two.run_dir / "adapter").exists()

    run_by_ray(partial(finetune, two), "cpu", RayProcesses(2))
    check_alike(one.run_dir, two.run_dir)
    state = read(two.run_dir / "checkpoints" / "checkpoint-8" / "trainer_state.json")
    assert [record["step"] for record in state["log_history"] if "loss" in record] == list(range(1, 9))
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("ray")
@pytest.mark.exhaustive
@pytest.mark.parametrize(("rank", "said"), [(0, "^the prompt is too long$"), (1, "^in process 1: the prompt")])
def test_an_error_of_one_process_is_the_commands(rank: int, said: str) -> None:
    """Its class cannot be pickled, and the other process waits for the one that raised it."""
    with pytest.raises(LaploraError, match=said):
        run_by_ray(partial(refuse, rank), "cpu", RayProcesses(2))


@pytest.mark.usefixtures("ray")
def test_gpus_that_ray_does_not_have_are_missed_before_anything_starts() -> None:
    if torch.cuda.is_available():
        pytest.skip("Ray has GPUs here")
    with pytest.raises(ConfigError, match="2 processes need a GPU each, and Ray has 0"):
        run_by_ray(partial(refuse, 0), "cuda", RayProcesses(2))
    with pytest.raises(ConfigError, match=r"base\.device: cuda:1 is one device"):
        run_by_ray(partial(refuse, 0), "cuda:1", RayProcesses(2))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["run", *NONE, "--workers", "2"], "go with --launcher ray"),
        (["run", *NONE, "--launcher", "ray"], "needs --workers"),
        (["run", *NONE, "--launcher", "ray", "--workers", "0"], "at least 1"),
        (["run", "--check", *NONE, "--launcher", "ray", "--workers", "2"], "check runs in one process"),
        (["run", "--config", SPREAD, "--set", "base.device_map=auto", *ONE], "leave out --launcher, or device_map"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 1
    assert said in capsys.readouterr().err
