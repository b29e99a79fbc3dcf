"""No name of an artifact leaves the root: not by its spelling, not by a link."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from serving import FakePredictor, code, serve

import service.artifacts.host
from service.artifacts.folders import artifact_folders

NAMES = ["..", "../outside", "fake/../../outside", "..\\outside", "/etc", "fake\0", "./fake", ".hidden", "%2e%2e"]
NAMES += ["ｆａｋｅ", "x" * 5000, "empty", "file", "linked"]


def artifact(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one artifact, half of another, and an artifact beside the root, to which a link leads."""
    root = tmp_path / "root"
    for path in (root / "fake", root / ".hidden", tmp_path / "outside"):
        artifact(path)
    (root / "empty").mkdir()
    (root / "file").touch()
    (root / "linked").symlink_to(tmp_path / "outside")
    return root


def test_links_out_of_the_root_are_left_out_and_those_that_stay_inside_are_not(root: Path, tmp_path: Path) -> None:
    """A name for the current one, and a root that is itself a link, as mounts have them."""
    artifact(tmp_path / "root-more")  # its name begins like the root's
    for link, target in (
        ("relative", "../outside"),
        ("beside", tmp_path / "root-more"),
        ("broken", "nowhere"),
        ("loop", "loop"),
        ("twice", "linked"),
    ):
        (root / link).symlink_to(target)
    for folder, manifest in (("manifest-out", tmp_path / "outside"), ("manifest-beside", root / "fake")):
        (root / folder).mkdir()
        (root / folder / "manifest.json").symlink_to(manifest / "manifest.json")
    (root / "manifest-folder" / "manifest.json").mkdir(parents=True)
    assert artifact_folders(root) == {"fake": root / "fake"}
    assert artifact_folders(root / "nowhere") == artifact_folders(root / "file") == {}
    (root / "current").symlink_to("fake")
    (tmp_path / "link").symlink_to(root)
    assert set(artifact_folders(root)) == set(artifact_folders(tmp_path / "link")) == {"current", "fake"}


@pytest.mark.anyio
async def test_no_spelling_leaves_the_root(root: Path) -> None:
    """Refused by name: an artifact that is there and cannot be loaded would be 409."""
    async with serve(FakePredictor(path=root / "fake"), FakePredictor("linked"), artifacts_root=root) as served:
        listed = (await served.client.get("/artifacts")).json()["artifacts"]
        for name in NAMES:
            answers = [
                await served.client.post(f"/artifacts/{quote(name, safe='')}/{verb}")
                for verb in ("load", "activate", "unload")
            ]
            answers.append(await served.predict("a", artifact=name))
            refusals = (404, "artifact_not_found"), (404, "route_not_found"), (422, "invalid_request")
            assert {code(answer) for answer in answers} <= set(refusals), name
    assert [item["name"] for item in listed] == ["fake"]


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

    monkeypatch.setattr(service.artifacts.host, "artifact_folders", never)
    monkeypatch.setattr(service.artifacts.host, "LOOK_UP_S", 0.2)
    try:
        async with serve(FakePredictor(path=root / "fake"), artifacts_root=root, load_timeout_s=0.2) as served:
            asking = asyncio.create_task(served.predict("a", artifact="nobody"))
            await served.until(lambda: bool(threads))
            assert (await served.client.get("/health/live")).status_code == 200
            assert (await served.predict("a")).status_code == 200
            assert (await served.predict("a", artifact="fake")).status_code == 200
            refused = [await asking]
            for verb in ("unload", "load", "load"):
                refused.append(await served.client.post(f"/artifacts/nobody/{verb}"))
    finally:
        let_go.set()
    assert [code(answer) for answer in refused] == [
        (404, "artifact_not_loaded"),
        (404, "artifact_not_loaded"),
        (504, "load_timeout"),
        (409, "load_stuck"),
    ]
    assert not any("AnyIO" in name for name in threads), "the threads that FastAPI keeps for what is short"
