"""``laplora jobs`` against a real server process over a fake predictor."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from contract import answer_to
from remote_servers import Answer, answering, running
from tiny_runs import write_rows

from laplora.client.retries import Retries
from laplora.commands.app import main
from laplora.commands.jobs import KEY_VARIABLE


@pytest.fixture
def upload(tmp_path: Path) -> str:
    """A file of 30 rows."""
    rows = [{"text": f"row {i + 2}", "label": ("negative", "positive")[i % 3 == 0]} for i in range(30)]
    return str(write_rows(tmp_path / "rows.jsonl", rows))


def ran(capsys: pytest.CaptureFixture[str], address: str, *arguments: str) -> Any:
    assert main(["jobs", *arguments, "--url", address, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_file_goes_through(served: str, upload: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ran(capsys, served, "submit", upload, "--wait")
    assert (job["status"], job["rows"], job["rows_done"]) == ("done", 30, 30)
    shown = ran(capsys, served, "show", job["id"])
    assert shown["result"]["rows"] == 30
    assert job["id"] in [one["id"] for one in ran(capsys, served, "list")]
    out = str(tmp_path / "answers.jsonl")
    assert main(["jobs", "results", job["id"], "--out", out, "--url", served]) == 0
    rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert main(["jobs", "results", job["id"], "--url", served]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert [row["line"] for row in rows] == list(range(1, 31))
    assert main(["jobs", "list", "--url", served]) == 0
    assert f"{job['id']}  done" in capsys.readouterr().out
    bare = write_rows(tmp_path / "bare.jsonl", [{"text": f"row {i + 2}"} for i in range(7)])
    assert main(["jobs", "submit", str(bare), "--wait", "--url", served]) == 0
    told = capsys.readouterr()
    assert "7 rows, 0 with a label" in told.err
    assert main(["jobs", "submit", "rows.csv", "--url", served]) == 2
    assert "rows.csv: a job takes JSON Lines; laplora predict" in capsys.readouterr().err
    counted = re.search(
        r"answers +accept (\d+)  review (\d+)  labels in a set [12]\.\d\d  .*unfamiliar 0\.0%", told.out
    )
    assert counted is not None
    assert int(counted[1]) + int(counted[2]) == 7
    assert "metrics" not in told.out
    assert main(["jobs", "remove", job["id"], "--url", served]) == 0
    assert job["id"] not in [one["id"] for one in ran(capsys, served, "list")]


def test_a_job_is_followed_to_its_end(served: str, gate: Path, upload: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = ran(capsys, served, "submit", upload)
    assert main(["jobs", "watch", job["id"], "--url", served]) == 0
    told = capsys.readouterr().out.splitlines()
    assert f"job {job['id']}: done, 30 of 30 rows, 0 without an answer" in told
    assert any(line.startswith("done") and "30/30 rows" in line for line in told)
    # One that has ended is told of as it is.
    assert main(["jobs", "watch", job["id"], "--url", served, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == ran(capsys, served, "show", job["id"])
    # One that somebody cancels did not do what it was followed for.
    gate.unlink()
    try:
        job = ran(capsys, served, "submit", upload)
        assert ran(capsys, served, "cancel", job["id"])["status"] == "cancelled"
    finally:
        gate.touch()
    assert main(["jobs", "watch", job["id"], "--url", served]) == 1
    capsys.readouterr()


def test_what_the_server_refuses_is_an_error(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, nowhere = write_rows(tmp_path / "bad.jsonl", [{"text": 1}] * 7), tmp_path / "nowhere.jsonl"
    # When it is tried again is tests/laplora/client's to say: here, once and soon.
    monkeypatch.setattr(Retries, "wait_s", lambda rule, failure, tried: None if tried > 1 else 0.01)
    for arguments, url, said in (
        (["submit", str(bad)], served, "error: line 1"),
        (["submit", str(bad)], served, "\n... 7 lines have a problem"),
        (["show", "nobody"], served, "error: "),
        (["watch", "nobody"], served, "error: "),
        (["submit", str(nowhere)], served, "nowhere.jsonl"),
        (["list"], "http://127.0.0.1:9", "http://127.0.0.1:9"),
    ):
        assert main(["jobs", *arguments, "--url", url]) == 2
        assert said in capsys.readouterr().err


def test_a_job_is_watched_over_a_restart_with_the_key_of_a_variable_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is away for more tries than the client makes of other requests."""
    running_job, away = answer_to("GET", "/evaluate/jobs/j") | {"status": "running"}, [503] * Retries().tries
    statuses = ["running", "running", *away, "done"]

    def answer(_method: str, path: str, _body: bytes, key: str | None) -> Answer:
        if key != "Bearer right":
            return 401, {}, json.dumps(answer_to("GET", "/evaluate/jobs/j", 401)).encode()
        if path.endswith("/report"):
            return 200, {}, b"<p>Ship it"
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
        monkeypatch.setenv(KEY_VARIABLE, "right")
        assert main(["jobs", "report", "j", "--url", url, "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == "<p>Ship it"
    assert main([*watch, "--key-file", str(tmp_path / "nowhere")]) == 2
    assert "--key-file" in capsys.readouterr().err
