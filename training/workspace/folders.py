"""Which folder below ``runs`` is a run's: each belongs to one configuration, and nothing of another's is deleted."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from laplora.errors import ConfigError
from laplora.files import write_whole

#: The file of a run's folder that says whose it is: the configuration's fields, and ``made_from`` once it was trained.
CONFIG = "config.json"
#: Fields of a configuration that change no result of a run.
_WITHOUT_EFFECT = (("golden_inputs",), ("base", "device"), ("base", "dequantize"))


def configuration_digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of a configuration's fields as JSON, without those that change no result."""
    kept = json.loads(json.dumps({k: v for k, v in fields.items() if k != "made_from"}))
    for *sections, last in _WITHOUT_EFFECT:
        place = kept
        for section in sections:
            place = place.get(section, {})
        place.pop(last, None)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def folder_of(runs: Path, name: str, fields: Mapping[str, Any]) -> Path:
    """Return the folder of a configuration: ``runs/NAME``, or ``runs/NAME-DIGEST`` where another one has that."""
    digest = configuration_digest(fields)
    plain, own = runs / name, runs / f"{name}-{digest[:8]}"
    owners = owner(plain), owner(own)
    if digest in owners:  # a folder that it has is kept, whatever becomes of the other one
        return plain if owners[0] == digest else own
    return plain if owners[0] is None and not own.exists() else own


def owner(folder: Path) -> str | None:
    """Return the digest of the configuration that a folder belongs to; None: it is nobody's yet.

    A record that cannot be read gives the empty string, which is no configuration's digest.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        return configuration_digest(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return ""


def claim(folder: Path, fields: Mapping[str, Any]) -> bool:
    """Make a folder a configuration's and return whether it is; False: another one was there first.

    The record appears whole or not at all, so that of two jobs that start together only one has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".claim"):
        if not (folder / CONFIG).exists():
            _write_record(folder, fields)
    return owner(folder) == configuration_digest(fields)


def _write_record(folder: Path, fields: Mapping[str, Any]) -> None:
    write_whole(folder / CONFIG, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def siblings(runs: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yield the folders of a name's configurations that were trained, and what each adapter was made from."""
    for path in sorted(runs.glob(f"{name}/{CONFIG}")) + sorted(runs.glob(f"{name}-{'[0-9a-f]' * 8}/{CONFIG}")):
        try:
            made_from = json.loads(path.read_text(encoding="utf-8")).get("made_from")
        except (OSError, ValueError, AttributeError):
            continue
        if made_from and (path.parent / "adapter" / "adapter_model.safetensors").is_file():
            yield path.parent, made_from


def start_from(sibling: Path, folder: Path, fields: Mapping[str, Any]) -> bool:
    """Make a configuration's folder a copy of another one's results, so that what they share is not computed again.

    Each later step looks at what its own result was made from, and does it again where that is something else.
    Checkpoints stay behind, and so do files that are being written. The folder appears whole; False: another job was
    faster.
    """
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    left_out = shutil.ignore_patterns(".*", CONFIG, "checkpoints", "earlier-*")
    try:
        shutil.copytree(sibling, partial, ignore=left_out, dirs_exist_ok=True)
        partial.chmod(0o755)
        _write_record(partial, fields)
        partial.rename(folder)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def in_use(folder: Path) -> FileLock:
    """Return the lock of a run's folder, held for as long as the returned object lives; one process may have it twice.

    Raises:
        ConfigError: another process has it.
    """
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
