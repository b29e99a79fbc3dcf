"""``laplora jobs`` against a real server process over a fake predictor, with API keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import fake_artifacts, fake_server, is_ready, until

from laplora.commands.app import main
from laplora.commands.jobs import KEY_VARIABLE
from service.security.keys_file import Key, digest, new_token, write_keys


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("jobs")
    with (
        fake_server(fake_artifacts(folder / "served"), "--jobs-dir", str(folder / "kept")) as process,
        process.client() as client,
    ):
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
    assert ran(capsys, address, "slices", job["id"], "--by", "label")["rows"] == 30
    assert main(["jobs", "results", job["id"], "--parquet", "--url", address]) == 2
    assert main(["jobs", "list", "--url", address]) == 0
    assert f"{job['id']}  done" in capsys.readouterr().out
    assert main(["jobs", "remove", job["id"], "--url", address]) == 0
    assert job["id"] not in [one["id"] for one in ran(capsys, address, "list")]


def test_what_the_server_refuses_is_an_error(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    assert main(["jobs", "submit", str(tmp_path / "bad.jsonl"), "--url", address]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["jobs", "show", "nobody", "--url", address]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["jobs", "submit", str(tmp_path / "nowhere.jsonl"), "--url", address]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert main(["jobs", "list", "--url", "http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_the_key_comes_from_a_variable_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token, keys = new_token(), tmp_path / "keys.json"
    write_keys(keys, [Key(id="a", sha256=digest(token), scopes=("evaluate",))])
    (tmp_path / "key").write_text(f"{token}\n")
    flags = ("--jobs-dir", str(tmp_path / "kept"), "--auth", "keys", "--keys", str(keys))
    with fake_server(fake_artifacts(tmp_path / "served"), *flags) as process, process.client() as client:
        url = ("--url", str(client.base_url))
        monkeypatch.setenv(KEY_VARIABLE, "none")
        assert main(["jobs", "list", *url]) == 2
        assert "error: " in capsys.readouterr().err
        assert main(["jobs", "list", *url, "--key-file", str(tmp_path / "key")]) == 0
        monkeypatch.setenv(KEY_VARIABLE, token)
        assert main(["jobs", "list", *url]) == 0
    assert main(["jobs", "list", *url, "--key-file", str(tmp_path / "nowhere")]) == 2
    assert "--key-file" in capsys.readouterr().err
