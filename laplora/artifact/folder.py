"""Reading an artifact, always verified against its manifest, and writing one of which a reader never sees half."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from laplora.artifact.manifest import (
    MANIFEST,
    NAME,
    FileRecord,
    Manifest,
    parse_manifest,
)
from laplora.artifact.partial import partial_folder
from laplora.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    ArtifactWriteError,
    ConfigError,
)
from laplora.files.atomic import FULL_DISK, file_sha256, folder_mode

#: Most bytes of a manifest. It is read whole; every other file by the size that the manifest states.
MAX_MANIFEST_BYTES = 16 * 2**20
#: Beside a folder of the cache that was fetched from elsewhere: from where. No artifact can have this name.
FETCHED = ".fetched.json"
#: The advice in place of changing one.
PULL_FIRST = "copy it with 'laplora pull URL --to FOLDER', and work on that folder"


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk.

    Attributes:
        digest: ``sha256:`` and the digest of the manifest's bytes, which hold every other file's digest.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def name(self) -> str:
        return self.manifest.name


def read_artifact(path: Path) -> Artifact:
    """Return the artifact in a folder, every file checked against the manifest. One that is replaced is read again.

    Raises:
        ArtifactNotFoundError: no such folder, or one without a manifest.
        ArtifactIncompatibleError: written in another format version.
        ArtifactCorruptError: a manifest that does not parse; a file missing, left over, changed or unreadable; a link
            out of the folder.
    """
    while True:
        before = _identity(path)
        try:
            artifact = _read_once(path)
        except ArtifactError:
            if _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return artifact


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells a folder from the one that replaces it under the same name."""
    try:
        status = path.stat()
    except OSError:
        return None
    # The times too: a file system gives the number of a folder that is gone to the next one.
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read_once(path: Path) -> Artifact:
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ArtifactNotFoundError(
            f"no artifact at {path.name!r}: expected a folder with a {MANIFEST}; 'python -m training run' makes one"
        )
    try:
        if not manifest_path.resolve().is_relative_to(path.resolve()):  # before a message can tell of what it holds
            raise ArtifactCorruptError(f"artifact {path.name!r}: {MANIFEST} leads out of the folder")
        size = manifest_path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise ArtifactCorruptError(f"{MANIFEST} of {path.name!r} has {size} bytes, more than {MAX_MANIFEST_BYTES}")
        raw = manifest_path.read_bytes()
        manifest = parse_manifest(path.name, raw)
        _verify_files(path, manifest)
    except OSError as error:
        raise ArtifactCorruptError(f"artifact {path.name!r} cannot be read: {error.strerror}") from None
    except RuntimeError:  # of Python 3.11 and 3.12, from Path.resolve
        raise ArtifactCorruptError(f"artifact {path.name!r} has a link that leads to itself") from None
    return Artifact(path, manifest, "sha256:" + hashlib.sha256(raw).hexdigest())


def _verify_files(path: Path, manifest: Manifest) -> None:
    root = path.resolve()
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()} - {MANIFEST}
    wanted = {*manifest.files, *manifest.required}
    missing, extra = sorted(wanted - present), sorted(present - set(manifest.files))
    if missing or extra:
        raise ArtifactCorruptError(
            f"artifact {path.name!r}: files missing {missing[:4]}, not in the manifest {extra[:4]}"
        )
    for name in manifest.files:
        if not (path / name).resolve().is_relative_to(root):
            raise ArtifactCorruptError(f"artifact {path.name!r}: {name} leads out of the folder")
        if not (path / name).is_file():
            raise ArtifactCorruptError(f"artifact {path.name!r}: {name} is not a regular file")
    for name, record in manifest.files.items():
        _verify_file(path, name, record)


def _verify_file(path: Path, name: str, record: FileRecord) -> None:
    file = path / name
    size = file.stat().st_size
    if size != record.size_bytes:
        with file.open("rb") as handle:
            pointer = handle.read(64).startswith(b"version https://git-lfs")
        hint = ": it is a git-lfs pointer, fetch the real file with 'git lfs pull'" if pointer else ""
        raise ArtifactCorruptError(
            f"artifact {path.name!r}: {name} has {size} bytes, the manifest says {record.size_bytes}{hint}"
        )
    digest = file_sha256(file)
    if digest != record.sha256:
        raise ArtifactCorruptError(
            f"artifact {path.name!r}: {name} has the SHA-256 {digest[:12]}..., the manifest says "
            f"{record.sha256[:12]}...: copy the artifact again"
        )


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Return a record of every file in a folder but the manifest, by path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        p.relative_to(folder).as_posix(): FileRecord(sha256=file_sha256(p), size_bytes=p.stat().st_size) for p in files
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of an artifact."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


@contextmanager
def new_artifact(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of ``target`` when the block ends without an error.

    Raises:
        ArtifactWriteError: the disk is full, or the user's share of it; or what is there is no artifact.
    """
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial_folder(target) as partial:
            yield partial
            # Copies, and files that safetensors wrote, have other permissions than the process gives.
            mode = folder_mode(partial)
            for item in [partial, *partial.rglob("*")]:
                item.chmod(mode if item.is_dir() else mode & 0o666)
            check_replaceable(target)  # again: somebody may have put a file of their own there meanwhile
            _replace_folder(partial, target)
    except (OSError, SafetensorError) as error:
        if _is_full(error):
            raise ArtifactWriteError(
                f"no room to write the artifact {target.name!r}: make room on its disk and try again; nothing changed"
            ) from error
        raise


def check_name(target: Path) -> None:
    """Raise ConfigError where the last part of a folder's path is no name of an artifact."""
    if re.fullmatch(NAME, target.name) is None:
        raise ConfigError(
            f"an artifact is called as its folder, and {target.name!r} is no name for one: use 1 to 64 letters, "
            "digits, dots, dashes and underscores, the first a letter or digit"
        )


def is_fetched(folder: Path) -> bool:
    """Return whether a folder is the cache's copy of an artifact that lies elsewhere, which nothing may change."""
    return (folder.parent / FETCHED).is_file()


def check_replaceable(target: Path) -> None:
    """Raise ArtifactWriteError where an artifact would take the place of something that is none, or of files in it."""
    if not target.exists() and not target.is_symlink():
        return
    if is_fetched(target):
        raise ArtifactWriteError(f"{target.name!r} is the cache's copy of what lies elsewhere: {PULL_FIRST}")
    if target.is_symlink():
        raise ArtifactWriteError(f"{target} is a link: name the folder that it leads to, or remove the link")
    listed = _listed(target) if target.is_dir() else None
    if listed is None:
        raise ArtifactWriteError(
            f"{target} is there and is no artifact: give the artifact another name or folder, or remove what is there"
        )
    present = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_symlink() or not p.is_dir()}
    if others := sorted(present - listed - {MANIFEST}) if listed else []:
        raise ArtifactWriteError(
            f"{target} holds files that are no part of its artifact, such as {others[:2]}, and would lose them: move "
            "them, or give the artifact another name or folder"
        )


def _listed(folder: Path) -> set[str] | None:
    """Return the files that the manifest in a folder lists, none of an empty folder; None where it is no artifact.

    The manifest may be of any format, but a web page's or a package's is none.
    """
    if not any(folder.iterdir()):
        return set()
    try:
        fields = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or type(fields.get("format_version")) is not int:
        return None
    files = fields.get("files")
    return set(files) if isinstance(files, dict) else set()


def _is_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    # safetensors writes by itself, and gives the number in its message alone.
    return any(f"os error {number})" in str(error) for number in FULL_DISK)


def _replace_folder(new: Path, target: Path) -> None:
    """Move ``new`` to ``target``; what was there before ends up at ``new``, or is gone."""
    if not target.exists():
        new.rename(target)
        return
    if _exchange(new, target):
        return
    # where folders cannot change places in one step, the name is free for an instant
    old = new.with_suffix(".old")
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, where the system can (Linux); return whether it did."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
