"""The command lines as a person meets them: help to work from, exit statuses, Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import JOBS, main

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("training", "--help"), ("usage: python -m training", *JOBS, "training/configs", "docs/training.md")),
        (("service", "--help"), ("--artifact", "--port", "--host")),
        (("service.demo", "--help"), ("--artifact", "--port")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_help_is_enough_to_work_from(command: tuple[str, ...], words: tuple[str, ...]) -> None:
    finished = run(*command)
    assert finished.returncode == 0
    assert finished.stderr == ""
    for word in words:
        assert word in finished.stdout


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_help(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([job, "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert JOBS[job][1:] in text  # its first letter is a capital
    for word in ("--config", "SECTION.KEY=VALUE"):
        assert word in text


@pytest.mark.parametrize("arguments", [["trian"], ["run"], ["run", "--config", "x", "--fast"]])
def test_a_command_line_that_is_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m training" in capsys.readouterr().err


def test_a_job_that_cannot_run_exits_1_with_one_line(tmp_path: Path) -> None:
    finished = run("training", "run", "--config", str(tmp_path / "none.yaml"))
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1
    assert finished.stderr.startswith("error: no configuration at ")


def test_make_train_hands_overrides_on() -> None:
    """Each word of SET is one override, brackets and all."""
    words = "SET=optimizer.steps=5 adapter.targets=[q_proj,v_proj]"
    command = ["make", "-n", "-o", "setup", "train", "CONFIG=a.yaml", words]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--config a.yaml --set 'optimizer.steps=5' --set 'adapter.targets=[q_proj,v_proj]'" in printed
