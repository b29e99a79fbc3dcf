"""Several processes train what one does: the same batches, each taken in parts, and one of them writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from alike_runs import NATS, check_alike, check_measured_alike, read
from tiny_runs import FinishedRun, sentiment_config

from laplora.errors import ConfigError
from laplora.execution.workers import Workers
from laplora.predictor import Predictor
from training.__main__ import main
from training.fine_tuning.label_trainer import LengthGrouped
from training.fine_tuning.shared_steps import SharedBatches
from training.workspace import processes
from training.workspace.processes import own_device

TESTS = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return what a process of its own needs to find the tests' modules."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    """Folder of every plan's runs."""
    folder = tmp_path_factory.mktemp("shared-runs")
    program = Path(__file__).with_name("shared_runs.py")
    subprocess.run([sys.executable, program, folder, tiny_base_folder], env=environment(), check=True)
    return folder


def statuses(root: Path, number: int) -> list[int]:
    return [int(status) for status in (root / f"{number}.statuses").read_text().split()]


def test_a_stopped_run_of_two_goes_on_to_what_one_process_has(root: Path) -> None:
    """The step that was kept included: every process evaluates all selection rows."""
    alive, dead = statuses(root, 1)
    assert dead == 9
    assert alive != 0
    assert statuses(root, 0) + statuses(root, 2) == [0, 0, 0]
    first, second = ((root / "two" / f"2-{rank}.log").read_text() for rank in (0, 1))
    assert "resuming at" in first
    for said in ("fine-tuning on 30 rows", "writes checkpoint-16"):
        assert said in first
        assert said not in second
    one, two = (root / name / "runs" / "tiny-sentiment" for name in ("one", "two"))
    check_alike(one, two)
    selected, twin = (read(folder / "selected.json") for folder in (one, two))
    assert selected["step"] == twin["step"]
    assert twin["nll"] == pytest.approx(selected["nll"], abs=NATS)


def test_a_process_without_a_row_adds_nothing(root: Path) -> None:
    """With batches of one row for two processes."""
    assert statuses(root, 3) + statuses(root, 4) == [0, 0, 0]
    check_alike(*(root / name / "runs" / "tiny-sentiment" for name in ("one-row-by-row", "two-row-by-row")))


@pytest.mark.exhaustive
def test_the_command_makes_the_artifact_of_one_process(
    sentiment_run: FinishedRun, tiny_base_folder: Path, tmp_path: Path
) -> None:
    """Fine-tuned, fitted, evaluated and packaged by two processes; the paths in its configuration are relative."""
    sentiment_config(tmp_path, tiny_base_folder, runs="runs", artifacts="artifacts")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training"]
    how: dict[str, Any] = {"env": environment(), "cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*command, "run", "--config", "sentiment.yaml"], **how)
    assert done.returncode == 0, done.stderr[-4000:]
    assert [done.stdout.count(line) for line in ("[1/5] frozen fit", "[3/5] fit", "serve it:")] == [1, 1, 2]
    run_dir = tmp_path / "runs" / "tiny-sentiment"
    check_alike(sentiment_run.config.run_dir, run_dir)
    check_measured_alike(sentiment_run.config.run_dir, run_dir)
    predictor = Predictor.load(tmp_path / "artifacts" / "tiny-sentiment", device="cpu")
    assert predictor.artifact.manifest.metrics["laplace"]["rows"] == 24


# Without processes.


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_batches_are_the_same_for_any_number_of_processes(count: int) -> None:
    order = range(6, -1, -1)
    parts = [list(SharedBatches(order, 4, Workers(rank, count))) for rank in range(count)]
    assert {len(part) for part in parts} == {2} == {len(SharedBatches(order, 4, Workers(0, count)))}
    for batch, whole in enumerate(([6, 5, 4, 3], [2, 1, 0])):
        assert sorted((row for part in parts for row in part[batch]), reverse=True) == whole
    batches = SharedBatches(LengthGrouped([3] * 8, 4, seed=0), 4, Workers(0, count))
    first = list(batches)
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first, "every epoch has an order of its own"


def test_a_job_of_one_process_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(processes, "leave", lambda: None)
    assert main(["run", "--check", "--config", "none.yaml"]) == 1
    assert "error in process 1: check runs in one process, and 2 were started" in capsys.readouterr().err


def test_processes_take_the_gpus_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("auto", Workers(3, 4)) == torch.device("cuda:1")
    assert own_device("cpu", Workers(3, 4)) == torch.device("cpu")
    assert own_device("cuda:0", Workers()) == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="cuda:0 is one GPU, and 4 processes take one each"):
        own_device("cuda:0", Workers(3, 4))
