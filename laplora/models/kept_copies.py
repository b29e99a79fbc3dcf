"""Which copies of bases and adapters the cache has, so that one that is there is loaded while its store is away.

A note of a copy has its address, the hub's commit, and its files with their sizes. It is of the last state that was
fetched from an address, or of one that is pinned: what whoever loads it must find in it, such as the weights' hash.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from laplora.files import write_json
from laplora.models.wheels import cache_root


@dataclass(frozen=True)
class Copy:
    """A whole copy in the cache.

    Attributes:
        noted: when it was noted, UTC, for people; commit: of the hub, None of another store.
    """

    folder: Path
    noted: str
    commit: str | None


def keep_copy(
    address: str,
    kind: str,
    folder: Path,
    *,
    cache: Path | None = None,
    pin: str | None = None,
    commit: str | None = None,
) -> None:
    """Note what was fetched from an address; a cache that cannot be written keeps no note.

    Args:
        kind: ``base``, ``tokenizer`` or ``adapter``.
        pin: what is known to be in it; None: it is the last state of the address.
    """
    root = _root(cache)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    where = folder.relative_to(root) if folder.is_relative_to(root) else folder.absolute()
    with suppress(OSError):
        write_json(
            _note(root, address, kind, pin),
            {"from": address, "kind": kind, "pin": pin, "commit": commit, "folder": str(where), "files": files},
        )


def kept_copy(address: str, kind: str, *, cache: Path | None = None, pin: str | None = None) -> Copy | None:
    """Return the copy of an address with this pin; None where there is none, or it is not whole any more."""
    root = _root(cache)
    note = _note(root, address, kind, pin)
    try:
        fields = json.loads(note.read_bytes())
        folder = root / fields["folder"]
        whole = all((folder / name).stat().st_size == size for name, size in fields["files"].items())
        noted = datetime.fromtimestamp(note.stat().st_mtime, UTC).isoformat(timespec="seconds")
        return Copy(folder, noted, fields["commit"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _root(cache: Path | None) -> Path:
    return cache_root(cache) / "checkpoints"


def _note(root: Path, address: str, kind: str, pin: str | None) -> Path:
    key = hashlib.sha256(json.dumps([address, kind, pin]).encode()).hexdigest()
    return root / "copies" / f"{key}.json"
