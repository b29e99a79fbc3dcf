"""A run's folder is taken, copied, locked and cleared: nothing of another configuration's is deleted."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from laplora.errors import ConfigError
from laplora.files.atomic import folder_mode, write_json
from training.config.folders import CONFIG, configuration_digest, owner


def claim(folder: Path, fields: Mapping[str, Any]) -> bool:
    """Make a folder a configuration's and return whether it is; False: another one was there first."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".claim"):
        if not (folder / CONFIG).exists():
            write_json(folder / CONFIG, fields)
    return owner(folder) == configuration_digest(fields)


def trained_from(runs: Path, name: str, inputs: str, fields: Mapping[str, Any]) -> list[Path]:
    """Return the folders of a name's configurations that hold an adapter trained from the same inputs.

    The one whose configuration differs in the fewest fields comes first: more of its results are of use.
    """
    folders: list[tuple[int, Path]] = []
    for path in sorted(runs.glob(f"{name}/{CONFIG}")) + sorted(runs.glob(f"{name}-{'[0-9a-f]' * 8}/{CONFIG}")):
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            made_from = theirs.get("made_from")
        except (OSError, ValueError, AttributeError):
            continue
        if made_from == inputs and (path.parent / "adapter" / "adapter_model.safetensors").is_file():
            folders.append((_differences(theirs, json.loads(json.dumps(fields))), path.parent))
    return [folder for _, folder in sorted(folders, key=lambda item: item[0])]


def _differences(one: Any, other: Any) -> int:
    """Return in how many fields two configurations differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return int(one != other)
    return sum(_differences(one.get(name), other.get(name)) for name in one.keys() | other.keys())


def start_from(sibling: Path, folder: Path, fields: Mapping[str, Any]) -> bool:
    """Make a configuration's folder a copy of another one's results, so that what they share is not computed again.

    Each later step checks what its result was made from. Checkpoints and files that are being written stay behind. The
    folder appears whole; False: another job was faster.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    ignored = shutil.ignore_patterns(".*", "checkpoints", "earlier-*")
    try:
        shutil.copytree(sibling, partial, ignore=ignored, dirs_exist_ok=True)
        partial.chmod(folder_mode(partial))
        write_json(partial / CONFIG, fields)
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def in_use(folder: Path) -> FileLock:
    """Return the lock of a run's folder, held while the object lives; ConfigError where another process has it."""
    lock = FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another job works in {folder}: wait for it, or give this run another name (--set name=NAME)"
        ) from None
    return lock


def set_aside(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Move results that were made from other inputs into a folder ``earlier-TIME``; return it, None where none are."""
    stale = [folder / name for name in names if (folder / name).exists()]
    if not stale:
        return None
    aside = folder / f"earlier-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    aside.mkdir()
    for path in stale:
        path.rename(aside / path.name)
    return aside
