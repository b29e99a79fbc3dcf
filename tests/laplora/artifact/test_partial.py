"""The folder that an artifact is written in: gone at the end, however the process ends, and nobody else's with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laplora.artifact.partial import partial_folder

_WRITER = """
import sys
from pathlib import Path
from laplora.artifact.partial import partial_folder

with partial_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@contextmanager
def writing(target: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yield a process that writes an artifact, and its folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(target)], text=True, **pipes) as process:
        assert process.stdout is not None
        try:
            yield process, target.parent / process.stdout.readline().strip()
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_process_writes_stays_and_what_a_killed_one_left_goes_with_the_next_write(tmp_path: Path) -> None:
    with writing(tmp_path / "it") as (process, left):
        with partial_folder(tmp_path / "it") as ours, partial_folder(tmp_path / "it") as too:
            assert names(tmp_path) == sorted([left.name, ours.name, too.name])
        process.kill()
        process.wait()
    assert names(left) == ["half"]
    with partial_folder(tmp_path / "other"):
        assert left.exists()  # of another artifact
    with partial_folder(tmp_path / "it") as folder:
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_other_names_are_nobodys_but_the_users(tmp_path: Path) -> None:
    """And a link of such a name leads to no loss."""
    mine = [".it.partial", ".it.ABCDEFGH.partial", ".it.more.abcdefgh.partial", "it.abcdefgh.partial", ".it.abcdefgh"]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("x")
    (tmp_path / ".it.abcdefgh.partial").symlink_to(tmp_path / mine[0])
    with partial_folder(tmp_path / "it"):
        pass
    assert all(names(tmp_path / name) == ["thesis.tex"] for name in mine)
