"""``laplora push`` and ``laplora pull``, on a real S3 server and a hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from remote_servers import hub_server

from benchmarks.harness.provenance import ARTIFACT
from laplora.artifact.folder import read_artifact
from laplora.commands.app import main

URL = "s3://models/team/sst2"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("s3")
def test_what_was_pushed_is_pulled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = read_artifact(ARTIFACT).digest
    assert main(["push", str(ARTIFACT), URL]) == 0
    pinned = capsys.readouterr().out.strip()
    assert pinned == f"{URL}#{digest.replace(':', '=')}"
    assert main(["push", str(ARTIFACT), URL, "--json"]) == 0  # it is there already
    assert json.loads(capsys.readouterr().out) == {"url": pinned, "name": ARTIFACT.name, "digest": digest}

    target = tmp_path / "artifacts" / "mine"
    assert main(["pull", pinned, "--to", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert read_artifact(target).digest == digest
    assert main(["pull", pinned, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["digest"] == digest
    assert Path(told["folder"]).is_relative_to(tmp_path / "cache")

    other = tmp_path / "other"
    shutil.copytree(ARTIFACT, other)
    fields = json.loads((other / "manifest.json").read_bytes())
    (other / "manifest.json").write_text(json.dumps(fields | {"created": "2026-01-01T00:00:00Z"}))
    assert main(["push", str(other), URL]) == 2
    assert "--replace" in capsys.readouterr().err
    assert main(["push", str(other), URL, "--replace"]) == 0
    capsys.readouterr()
    assert main(["pull", URL, "--to", str(target)]) == 0
    assert read_artifact(target).digest == read_artifact(other).digest
    shutil.rmtree(tmp_path / "cache")
    assert main(["pull", pinned]) == 2  # its place has another one now
    assert "pinned" in capsys.readouterr().err
    assert main(["pull", URL, "--max-bytes", "1000"]) == 2
    assert "more than 1000" in capsys.readouterr().err


def test_the_hub_answers_with_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_server("owner/name", monkeypatch) as hub:
        hub.commit({"README.md": b"a card"})
        assert main(["push", str(ARTIFACT), "hf://owner/name/v1"]) == 0
        pinned, said = map(str.strip, capsys.readouterr())
        assert "and the texts of the 4 golden inputs that were given; and a report page as it was made" in said
        assert pinned.startswith(f"hf://owner/name@{hub.branches['main']}/v1#sha256=")
        hub.commit({"v1/golden.json": b"{}"})
        assert main(["pull", pinned]) == 0
        folder = Path(capsys.readouterr().out.strip())
        assert read_artifact(folder).digest == read_artifact(ARTIFACT).digest
        fetched = json.loads((folder.parent / ".fetched.json").read_text())
        assert fetched["commit"] in pinned
        shutil.rmtree(tmp_path / "cache")
        assert main(["pull", "hf://owner/name/v1"]) == 2  # the branch has a file that its manifest does not name so
        assert "golden.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["pull", f"artifacts/{ARTIFACT.name}"],
        ["pull", "https://me:pa55word@host/a"],
        ["push", "nowhere", URL],
        ["push", str(ARTIFACT), "https://127.0.0.1:9/a#sha256=" + "0" * 64],
        ["pull", URL, "--to", str(ARTIFACT / "report")],
        ["pull", URL, "--to", "a b"],
        ["predict", "--artifact", "http://example.com/a"],
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert "pa55word" not in said
