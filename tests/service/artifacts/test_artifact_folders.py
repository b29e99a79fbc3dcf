"""No name of an artifact leaves the root: not by its spelling, not by a link."""

from __future__ import annotations

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from serving import FakePredictor, serve
from tiny_runs import FinishedRun

import service.artifacts.host
from laplora.artifact.folder import read_artifact
from laplora.errors import ArtifactCorruptError
from service.artifacts.folders import artifact_folder, artifact_folders

NAMES = [
    "..",
    ".",
    "../outside",
    "../../etc/passwd",
    "fake/../../outside",
    "..\\outside",
    "/etc",
    "//etc",
    "fake\0",
    "fake\0.json",
    "fake/",
    "./fake",
    ".hidden",
    "~",
    "%2e%2e",
    "ｆａｋｅ",
    "x" * 5000,
]


def artifact(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one artifact, half of another, and an artifact beside the root."""
    artifact(tmp_path / "root" / "fake")
    artifact(tmp_path / "root" / ".hidden")
    artifact(tmp_path / "outside")
    (tmp_path / "root" / "empty").mkdir()
    (tmp_path / "root" / "file").touch()
    return tmp_path / "root"


def test_only_folders_with_a_manifest_are_artifacts(root: Path) -> None:
    assert artifact_folders(root) == {"fake": root / "fake"}


def test_one_folder_is_found_as_in_the_list(root: Path) -> None:
    (root / "linked").symlink_to(root.parent / "outside")
    (root / "current").symlink_to("fake")
    for name in (*NAMES, "fake", "empty", "file", "linked", "current", "outside", "FAKE", ""):
        assert artifact_folder(root, name) == artifact_folders(root).get(name), name
    assert artifact_folder(root, "fake") == root / "fake"
    assert artifact_folder(root / "nowhere", "fake") is None


def test_looking_for_one_folder_looks_into_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    real = Path.resolve

    def resolve(self: Path, strict: bool = False) -> Path:
        looked.append(self)
        return real(self, strict=strict)

    for number in range(5):
        artifact(root / f"other-{number}")
    monkeypatch.setattr(Path, "resolve", resolve)
    assert artifact_folder(root, "fake") == root / "fake"
    assert not any("other" in path.name for path in looked)


@pytest.mark.anyio
async def test_a_root_that_does_not_answer_keeps_nobody_else_waiting(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    threads: set[str] = set()

    def never(root: Path, name: str) -> None:
        threads.add(threading.current_thread().name)
        assert threading.current_thread() is not threading.main_thread()
        let_go.wait()

    monkeypatch.setattr(service.artifacts.host, "artifact_folder", never)
    monkeypatch.setattr(service.artifacts.host, "LOOK_UP_S", 0.2)
    body = {"inputs": [{"text": "a"}], "artifact": "nobody"}
    try:
        async with serve(FakePredictor(path=root / "fake"), artifacts_root=root, load_timeout_s=0.2) as served:
            asking = asyncio.create_task(served.client.post("/predict", json=body))
            while not threads:
                await asyncio.sleep(0.001)
            assert (await served.client.get("/health/live")).status_code == 200
            assert (await served.predict("a")).status_code == 200
            assert (await served.predict("a", artifact="fake")).status_code == 200
            refused = [
                await asking,
                await served.client.post("/artifacts/nobody/unload"),
                await served.client.post("/artifacts/nobody/load"),
                await served.client.post("/artifacts/nobody/load"),
            ]
    finally:
        let_go.set()
    assert [(r.status_code, r.json()["error"]["code"]) for r in refused] == [
        (409, "artifact_not_loaded"),
        (409, "artifact_not_loaded"),
        (504, "load_timeout"),
        (409, "load_stuck"),
    ]
    assert not any("AnyIO" in name for name in threads), "the threads that FastAPI keeps for what is short"


def test_no_root_has_no_artifacts(root: Path) -> None:
    assert artifact_folders(root / "nowhere") == artifact_folders(root / "file") == {}


def test_links_out_of_the_root_are_left_out(root: Path) -> None:
    (root / "linked").symlink_to(root.parent / "outside")
    (root / "relative").symlink_to("../outside")
    (root / "broken").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "twice").symlink_to("linked")
    (root / "manifest-out").mkdir()
    (root / "manifest-out" / "manifest.json").symlink_to(root.parent / "outside" / "manifest.json")
    (root / "manifest-beside").mkdir()
    (root / "manifest-beside" / "manifest.json").symlink_to(root / "fake" / "manifest.json")
    (root / "manifest-folder" / "manifest.json").mkdir(parents=True)
    assert set(artifact_folders(root)) == {"fake"}


def test_links_that_stay_inside_are_taken(root: Path, tmp_path: Path) -> None:
    """A name for the current one, and a root that is itself a link, as mounts have them."""
    (root / "current").symlink_to("fake")
    (tmp_path / "link").symlink_to(root)
    assert set(artifact_folders(root)) == set(artifact_folders(tmp_path / "link")) == {"current", "fake"}


def test_a_root_whose_name_begins_like_another_is_another(root: Path, tmp_path: Path) -> None:
    artifact(tmp_path / "root-more" / "x")
    (root / "x").symlink_to(tmp_path / "root-more" / "x")
    assert set(artifact_folders(root)) == {"fake"}


@pytest.mark.anyio
@pytest.mark.parametrize("name", NAMES)
async def test_no_spelling_leaves_the_root(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by name, and no path but the root's own was ever looked at by the library."""
    fake = FakePredictor(path=root / "fake")
    looked: list[Path] = []
    async with serve(fake, artifacts_root=root) as served:
        host = served.state.artifacts
        real = host._loader._calls.read

        def read(path: Path) -> Any:
            looked.append(path)
            return real(path)

        monkeypatch.setattr(host._loader, "_calls", replace(host._loader._calls, read=read))
        answers = [await asked(served.client, f"/artifacts/{quote(name, safe='')}/{verb}") for verb in VERBS]
        body = {"inputs": [{"text": "a"}], "artifact": name}
        answers.append(await served.client.post("/predict", json=body))
    for answer in answers:
        assert answer.status_code in (404, 422), (name, answer.text)
        assert answer.json()["error"]["code"] in ("artifact_not_found", "route_not_found", "invalid_request")
    assert {path.resolve() for path in looked} <= {root / "fake"}


VERBS = ("load", "activate", "unload")


async def asked(client: httpx.AsyncClient, path: str) -> httpx.Response:
    return await client.post(path)


@pytest.mark.anyio
async def test_a_linked_folder_is_neither_listed_nor_loaded(root: Path) -> None:
    (root / "linked").symlink_to(root.parent / "outside")
    async with serve(FakePredictor(path=root / "fake"), FakePredictor("linked"), artifacts_root=root) as served:
        listed = (await served.client.get("/artifacts")).json()["artifacts"]
        loaded = await served.client.post("/artifacts/linked/load")
    assert [item["name"] for item in listed] == ["fake"]
    assert loaded.json()["error"]["code"] == "artifact_not_found"


def test_a_linked_file_that_leads_out_is_refused_when_the_artifact_is_read(
    sentiment_run: FinishedRun, tmp_path: Path
) -> None:
    copy = tmp_path / "root" / "copy"
    shutil.copytree(sentiment_run.artifact, copy)
    assert read_artifact(copy).path == copy
    for file in ("adapter_model.safetensors", "golden.json"):
        inside = next(copy.rglob(file))
        outside = tmp_path / file
        inside.rename(outside)
        inside.symlink_to(outside)
        with pytest.raises(ArtifactCorruptError, match="leads out of the folder"):
            read_artifact(copy)
        inside.unlink()
        outside.rename(inside)
    (copy / "folder").symlink_to("/etc")
    assert not any("etc" in str(name) for name in read_artifact(copy).manifest.files)
