"""The command as a whole: help, version, statuses, completion, and the commands that it hands on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import laplora
from laplora.commands.app import main

COMMANDS = ("quick", "serve", "train", "fit", "evaluate", "predict", "report", "pull", "push", "jobs", "keys")


def test_help_names_every_command_and_where_configurations_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in (*COMMANDS, "--install-completion"))
    assert main(["train", "--help"]) == 0
    said = "".join(line.strip() + " " for line in capsys.readouterr().out.splitlines())
    folder = Path(said.split("Ready configurations to start from are in ")[1].rstrip(". ").replace(" ", ""))
    assert list(folder.glob("*.yaml"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"laplora {laplora.__version__}\n"


@pytest.mark.parametrize("command", [*COMMANDS, "jobs submit", "keys create"])
def test_every_command_has_help_by_its_own_name(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever installed the wheel knows no other name, and no type of Python's stands for a file or a number."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: laplora {command} " in said.casefold()
    assert "python -m training" not in said
    assert not re.search(r"<(str|path|int|float)", said)
    cut_short = [line for line in said.splitlines() if line.endswith("...") and line.startswith("  ")]
    assert cut_short == []


@pytest.mark.parametrize("arguments", [[], ["serve"], ["nobody", "x"], ["predict"], ["jobs", "show"]])
def test_a_command_line_that_is_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "usage: laplora" in (captured.out + captured.err).casefold()


def test_what_is_handed_on_has_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "nowhere.yaml"]) == 1  # as python -m training run
    assert "nowhere.yaml" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert "laplora train: error: " in capsys.readouterr().err
    assert main(["keys", "list", "--file", "nowhere.json"]) == 2  # as python -m service.keys
    assert "nowhere.json" in capsys.readouterr().err


def test_completion_is_for_this_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_LAPLORA_COMPLETE", "complete_bash"), ("COMP_WORDS", "laplora ev"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(name, value)
    main([])
    assert "evaluate" in capsys.readouterr().out
