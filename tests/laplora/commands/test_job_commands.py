"""``laplora jobs`` against a real server process over a fake predictor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from contract import answer_to
from remote_servers import Answer, answering, running
from server_process import fake_artifacts, fake_server, is_ready, until

from laplora.client.retries import Retries
from laplora.commands.app import main
from laplora.commands.jobs import KEY_VARIABLE


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file without which the server's device waits."""
    return tmp_path_factory.mktemp("gate") / "gate"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, gate: Path) -> Iterator[str]:
    gate.touch()
    folder = tmp_path_factory.mktemp("jobs")
    flags = ("--jobs-dir", str(folder / "kept"))
    server = fake_server(fake_artifacts(folder / "served"), *flags, FAKE_GATE=str(gate))
    with server as process, process.client() as client:
        until(lambda: is_ready(client))
        yield str(client.base_url)


def write_rows(folder: Path, count: int) -> str:
    file = folder / "rows.jsonl"
    lines = [{"text": f"row {i + 2}", "label": ("negative", "positive")[i % 3 == 0]} for i in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def ran(capsys: pytest.CaptureFixture[str], address: str, *arguments: str) -> Any:
    assert main(["jobs", *arguments, "--url", address, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_file_goes_through(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ran(capsys, address, "submit", write_rows(tmp_path, 30), "--wait")
    assert (job["status"], job["rows"], job["rows_done"]) == ("done", 30, 30)
    shown = ran(capsys, address, "show", job["id"])
    assert shown["result"]["rows"] == 30
    assert job["id"] in [one["id"] for one in ran(capsys, address, "list")]
    out = str(tmp_path / "answers.jsonl")
    assert main(["jobs", "results", job["id"], "--out", out, "--url", address]) == 0
    rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert main(["jobs", "results", job["id"], "--url", address]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert [row["line"] for row in rows] == list(range(1, 31))
    assert main(["jobs", "list", "--url", address]) == 0
    assert f"{job['id']}  done" in capsys.readouterr().out
    assert main(["jobs", "remove", job["id"], "--url", address]) == 0
    assert job["id"] not in [one["id"] for one in ran(capsys, address, "list")]


def test_a_job_is_followed_to_its_end(
    address: str, gate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ran(capsys, address, "submit", write_rows(tmp_path, 30))
    assert main(["jobs", "watch", job["id"], "--url", address]) == 0
    told = capsys.readouterr().out.splitlines()
    assert f"job {job['id']}: done, 30 of 30 rows, 0 without an answer" in told
    assert any(line.startswith("done") and "30/30 rows" in line for line in told)
    # One that has ended is told of as it is.
    assert main(["jobs", "watch", job["id"], "--url", address, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == ran(capsys, address, "show", job["id"])
    assert main(["jobs", "watch", "nobody", "--url", address]) == 2
    assert "error: " in capsys.readouterr().err
    # One that somebody cancels did not do what it was followed for.
    gate.unlink()
    job = ran(capsys, address, "submit", write_rows(tmp_path, 30))
    httpx.post(f"{address}/evaluate/jobs/{job['id']}/cancel", timeout=None).raise_for_status()
    assert main(["jobs", "watch", job["id"], "--url", address]) == 1
    gate.touch()
    capsys.readouterr()


def test_what_the_server_refuses_is_an_error(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    assert main(["jobs", "submit", str(tmp_path / "bad.jsonl"), "--url", address]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["jobs", "show", "nobody", "--url", address]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["jobs", "submit", str(tmp_path / "nowhere.jsonl"), "--url", address]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    # When it is tried again is tests/laplora/client's to say: here, once and soon.
    monkeypatch.setattr(Retries, "wait_s", lambda rule, failure, tried: None if tried > 1 else 0.01)
    assert main(["jobs", "list", "--url", "http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_a_job_is_watched_over_a_restart_with_the_key_of_a_variable_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is away for more tries than the client makes of other requests."""
    running_job, away = answer_to("GET", "/evaluate/jobs/j") | {"status": "running"}, [503] * Retries().tries
    statuses = ["running", "running", *away, "done"]

    def answer(_method: str, _path: str, _body: bytes, key: str | None) -> Answer:
        if key != "Bearer right":
            return 401, {}, json.dumps(answer_to("GET", "/evaluate/jobs/j", 401)).encode()
        status = statuses.pop(0)
        return (503, {}, b"") if status == 503 else (200, {}, json.dumps(running_job | {"status": status}).encode())

    monkeypatch.setattr("random.uniform", lambda *_: 0.0)  # tried again at once
    (tmp_path / "key").write_text("right\n")
    with running(answering(answer)) as url:
        watch = ["jobs", "watch", "j", "--url", url, "--json"]
        monkeypatch.setenv(KEY_VARIABLE, "wrong")
        assert main(watch) == 2
        assert "error: " in capsys.readouterr().err
        assert main([*watch, "--key-file", str(tmp_path / "key")]) == 0
        assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["running", "done"]
        statuses += ["done"]
        monkeypatch.setenv(KEY_VARIABLE, "right")
        assert main(["jobs", "show", "j", "--url", url]) == 0
    assert main([*watch, "--key-file", str(tmp_path / "nowhere")]) == 2
    assert "--key-file" in capsys.readouterr().err
