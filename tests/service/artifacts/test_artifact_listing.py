"""GET /artifacts hashes what is not loaded once, and notices every change."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import FakePredictor, serve

from laplora.errors import ArtifactCorruptError
from service.artifacts.listing import SETTLED_S, ArtifactListing


class Reader:
    """Returns the bytes of a folder's file in an artifact's place, and counts how often; ``now`` is the clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0
        self.listing = ArtifactListing(self, lambda: self.now)  # type: ignore[arg-type]

    def __call__(self, path: Path) -> Any:
        self.reads += 1
        text = (path / "weights").read_bytes()
        if text == b"broken":
            raise ArtifactCorruptError("broken")
        return text

    def look(self, path: Path, *, after_s: float = 0.0) -> Any:
        self.now += after_s
        return self.listing.read({path.name: path})[path.name]

    def settle(self, path: Path) -> int:
        """Look until nothing is read any more; return how often it was read so far."""
        self.look(path)
        self.look(path, after_s=SETTLED_S)
        return self.reads


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "root" / "a"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"one")
    return path


def test_what_has_not_changed_is_read_once_and_once_more_when_it_has_settled(folder: Path) -> None:
    reader = Reader()
    # A change within the file system's clock would be missed at the second look.
    for after_s, reads in ((0.0, 1), (SETTLED_S / 2, 2), (SETTLED_S, 3), (100.0, 3), (100.0, 3)):
        assert reader.look(folder, after_s=after_s) == b"one"
        assert reader.reads == reads
    assert reader.listing.read({}) == {}
    reader.look(folder)
    assert reader.reads == 4, "what left the root is forgotten"


def edit(path: Path) -> None:
    (path / "weights").write_bytes(b"two")


def edit_with_the_old_time(path: Path) -> None:
    """Same size, same time of change: only the time of the file's record tells."""
    status = (path / "weights").stat()
    edit(path)
    os.utime(path / "weights", ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_the_folder(path: Path) -> None:
    new = path.with_name("new")
    new.mkdir()
    edit(new)
    path.rename(path.with_name("old"))
    new.rename(path)


@pytest.mark.parametrize("change", [edit, edit_with_the_old_time, replace_the_folder])
def test_an_edited_file_is_noticed(folder: Path, change: Callable[[Path], None]) -> None:
    reader = Reader()
    reader.settle(folder)
    change(folder)
    assert reader.look(folder, after_s=1.0) == b"two"
    # So is one that came, and one that went.
    for other in (Path.touch, Path.unlink):
        reads = reader.settle(folder)
        other(folder / "extra")
        reader.look(folder)
        assert reader.reads == reads + 1


def test_a_broken_one_is_kept_too_until_it_is_mended(folder: Path) -> None:
    (folder / "weights").write_bytes(b"broken")
    reader = Reader()
    reads = reader.settle(folder)
    assert isinstance(reader.look(folder, after_s=1.0), ArtifactCorruptError)
    assert reader.reads == reads
    edit(folder)
    assert reader.look(folder) == b"two"


@pytest.mark.anyio
async def test_slow_hashing_keeps_nobody_from_metrics_parsing_and_evaluating(tmp_path: Path) -> None:
    """More GET /artifacts than FastAPI has threads wait for a disk that does not answer; the others are answered."""
    root = tmp_path / "root"
    (root / "slow").mkdir(parents=True)
    (root / "slow" / "manifest.json").write_text("{}")
    free, begun = threading.Event(), threading.Event()

    def read(path: Path) -> Any:
        begun.set()
        free.wait()
        raise ArtifactCorruptError("slow")

    async with serve(FakePredictor(), artifacts_root=root) as served:
        served.state.artifacts.listing = ArtifactListing(read)
        listed = [asyncio.create_task(served.client.get("/artifacts")) for _ in range(60)]
        await served.until(begun.is_set)
        assert (await served.client.get("/metrics")).status_code == 200
        assert (await served.predict("a" * 100_000)).status_code == 200
        labelled = {"inputs": [{"text": "a", "label": "positive"}], "options": {"resamples": 10}}
        assert (await served.client.post("/evaluate", json=labelled)).status_code == 200
        assert not any(task.done() for task in listed)
        free.set()
        answers = await asyncio.gather(*listed)
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].json()["artifacts"][1]["error"] == "slow"
