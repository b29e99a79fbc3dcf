"""``laplora serve FOLDER``: the server by the library's own command, and what it says where there is none."""

from __future__ import annotations

import sys
import tomllib

import pytest
from server_process import ROOT, predict, server_process
from tiny_runs import FinishedRun

from laplora.commands.app import main

NOTICE = "no API keys are asked for, and this machine alone is answered"


def test_an_artifact_is_served(sentiment_run: FinishedRun) -> None:
    """Further flags reach the server, and the default is said: no keys, this machine alone."""
    command = ["-m", "laplora", "serve", str(sentiment_run.artifact), "--device", "cpu", "--drain-s", "7"]
    with server_process(command, {"LAPLORA_AUTH": ""}) as process, process.client() as client:
        assert str(process.event("listening")["address"]).startswith("http://127.0.0.1:")
        assert predict(client).json()["predictions"][0]["label"] in ("negative", "positive")
        assert process.log.count(NOTICE) == 1
        process.popen.terminate()
        assert process.left() == 0


@pytest.mark.parametrize(
    ("flags", "variable"),
    [(["--key", "keys.json"], None), (["--aut=keys"], None), ([], "LAPLORA_AUTH"), ([], "laplora_keys"), ([], None)],
)
def test_who_may_ask_is_said_in_every_form_that_the_server_reads(
    flags: list[str], variable: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the beginning of a flag, or a variable in lower case: keys that were asked for were turned off."""
    monkeypatch.setattr("laplora.commands.serve.runpy.run_module", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("LAPLORA_AUTH", "LAPLORA_KEYS", "LAPLORA_HOST"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "keys.json")
    assert main(["serve", "tests", *flags]) == 0
    nobody_said = not flags and not variable
    assert ("--auth" in sys.argv) == nobody_said
    assert (NOTICE in capsys.readouterr().err) == nobody_said


def test_on_a_terminal_its_log_is_text_unless_the_caller_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.commands.serve.runpy.run_module", lambda *_, **__: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for terminal, flags, expected in (
        (True, [], ["--log-format", "text"]),
        (True, ["--log-format=json"], ["--log-format=json"]),
        (False, [], []),
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=terminal: answer)
        monkeypatch.setattr(sys, "argv", [])
        assert main(["serve", "tests", "--port", "9000", "--auth=off", *flags]) == 0
        assert sys.argv[1:5] == ["--artifact", "tests", "--port", "9000"]
        assert [one for one in sys.argv[5:] if one != "--auth=off"] == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # ``cpu`` was taken for the folder, and the folder for the device.
        (["--device", "cpu", "folder"], "the folder comes first"),
        (["folder", "--engine", "tpu"], "ray"),
    ],
)
def test_a_flag_before_the_folder_would_hide_it_and_an_unknown_engine_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_script_is_this_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"laplora": f"{main.__module__}:{main.__name__}"}
