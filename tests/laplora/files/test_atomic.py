"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from laplora.files.atomic import write_whole


@pytest.mark.parametrize("content", ["ä\n", b"\xff"])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_is_written_with_its_folder_and_permissions(tmp_path: Path, content: str | bytes, umask: int) -> None:
    path = tmp_path / "new" / "file"
    before = os.umask(umask)
    for mode in (0o666, 0o600):
        write_whole(path, content, mode=mode)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert stat.S_IMODE(path.stat().st_mode) == mode & ~umask
    os.umask(before)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        assert path.read_text() == "old"  # what a reader sees until the last step
        raise OSError("disk on fire")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk on fire"):
        write_whole(path, "new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
