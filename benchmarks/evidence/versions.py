"""Files of the study that are made again when what they hold is defined otherwise."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

#: By kind of members, raised whenever they are drawn otherwise. 2 of ``tfb``: the tolerance of the published runs.
MEMBER_VERSIONS = {"tfb": 2}


def has_version(path: Path, version: int) -> bool:
    """Return whether a safetensors file is there, of that version; one that names none is of version 1."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as handle:
        return int((handle.metadata() or {}).get("version", "1")) == version


def members_path(folder: Path, kind: str) -> Path:
    """Return where the logits of a unit's members of a kind are kept."""
    return folder / f"members.{kind}.safetensors"


def has_members(folder: Path, kind: str) -> bool:
    """Return whether a unit has members of a kind as they are drawn now."""
    return has_version(members_path(folder, kind), MEMBER_VERSIONS.get(kind, 1))
