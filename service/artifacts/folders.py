"""Which folders of the artifacts root can be asked for by name: those in it, and no spelling that leaves it."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "manifest.json"


def artifact_folders(root: Path, name: str | None = None) -> dict[str, Path]:
    """Return the artifacts' folders directly in the root, by name, sorted; none where there is no such root.

    A name from a request is compared and never joined to a path, so that ``..``, a slash in any encoding, an absolute
    path or a NUL is a name that nothing has. A folder or a manifest that is a link out of its place is left out. The
    root itself may be a link.

    Args:
        name: of the one folder that is looked into; None: all are.
    """
    try:
        entries = sorted(path for path in root.iterdir() if name in (None, path.name))
    except OSError:
        return {}
    # Hidden folders are artifacts half written.
    return {path.name: path for path in entries if not path.name.startswith(".") and _is_artifact(path, root)}


def _is_artifact(path: Path, root: Path) -> bool:
    try:
        folder, manifest = path.resolve(strict=True), (path / MANIFEST).resolve(strict=True)
        is_inside = folder.is_relative_to(root.resolve(strict=True)) and manifest.is_relative_to(folder)
        return is_inside and manifest.is_file()
    except (OSError, RuntimeError):  # gone meanwhile, or a loop of links
        return False
