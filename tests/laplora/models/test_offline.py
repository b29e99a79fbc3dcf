"""Wheels are fetched with pip, verified, cached once, and never left half done.

pip itself runs here, against a folder of wheels made on the spot: no test in this file needs a network.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_wheels import build_wheel, left_in

from laplora.errors import DownloadError
from laplora.files import file_sha256
from laplora.models import wheels
from laplora.models.wheels import Wheel, cache_root, ensure_wheel

NAME = "tinything-1.0-py3-none-any.whl"


@pytest.fixture
def wheel(index: Path) -> Wheel:
    """A wheel in that folder."""
    return build_wheel(index, "data.txt", b"hello")


def test_a_wheel_is_fetched_once_and_then_comes_from_the_cache(
    wheel: Wheel, index: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = cache / "wheels" / f".{NAME}.partial" / "half"  # left by a process that was killed
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x")
    path = ensure_wheel(wheel, cache=cache)
    assert zipfile.ZipFile(path).read("tinything/data.txt") == b"hello"
    (index / NAME).unlink()
    assert ensure_wheel(wheel, cache=cache) == path
    assert capsys.readouterr() == ("", "fetching tinything 1.0 (1 MB)\n")
    assert left_in(cache) == [NAME]


def test_another_hash_is_refused_and_not_kept(wheel: Wheel, cache: Path) -> None:
    with pytest.raises(DownloadError, match=r"has sha256 [0-9a-f]{64}, expected 0{64}"):
        ensure_wheel(replace(wheel, sha256="0" * 64), cache=cache)
    assert left_in(cache) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(wheel: Wheel, cache: Path) -> None:
    path = cache / "wheels" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    lines: list[str] = []
    ensure_wheel(wheel, cache=cache, progress=lines.append)
    assert lines[0] == f"{NAME} in the cache is damaged: fetching it again"
    assert file_sha256(path) == wheel.sha256


def test_offline_the_error_says_what_to_do(wheel: Wheel, index: Path, cache: Path) -> None:
    """And a file that is put there by hand is taken."""
    moved = (index / NAME).rename(index / "elsewhere")
    with pytest.raises(DownloadError, match=r"could not fetch tinything==1\.0.*PIP_INDEX_URL") as caught:
        ensure_wheel(wheel, cache=cache)
    target = cache / "wheels" / NAME
    assert str(target) in str(caught.value)
    assert left_in(cache) == []
    moved.rename(target)
    assert ensure_wheel(wheel, cache=cache) == target


def test_no_pip_in_the_environment(wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplora.models.wheels.importlib.util.find_spec", lambda _: None)
    with pytest.raises(DownloadError, match=r"has no pip.*ensurepip.*put tinything"):
        ensure_wheel(wheel, cache=cache)


def test_a_cache_that_cannot_be_made_is_named(wheel: Wheel, cache: Path) -> None:
    cache.write_text("not a folder")
    with pytest.raises(DownloadError, match="LAPLORA_CACHE"):
        ensure_wheel(wheel, cache=cache)


def test_two_processes_fetch_once(wheel: Wheel, cache: Path) -> None:
    root = Path(wheels.__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from pathlib import Path\n"
        "from laplora.models.wheels import Wheel, ensure_wheel\n"
        f"print(ensure_wheel({wheel!r}, cache=Path({str(cache)!r})))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert sum("fetching" in err for _, err in outputs) == 1
    assert len({out for out, _ in outputs}) == 1


def test_cache_root_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("LAPLORA_CACHE")
    assert cache_root() == tmp_path / "xdg" / "laplora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / "home" / ".cache" / "laplora"
    assert not (tmp_path / "own").exists()
