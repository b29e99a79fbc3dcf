"""Which folders of the artifacts root can be asked for by name: those in it, and no spelling that leaves it."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "manifest.json"


def artifact_folders(root: Path) -> dict[str, Path]:
    """Return the artifacts' folders directly in the root, by name, sorted; none where there is no such root.

    A name from a request is looked up here and never joined to a path, so that ``..``, a slash in any encoding, an
    absolute path or a NUL is a name like any other that nothing has. A folder or a manifest that is a link out of its
    place is left out: whoever may put a link into the root may not thereby show the rest of the disk. The files that a
    manifest names are checked in the same way when the artifact is read. The root itself may be a link.
    """
    try:
        entries = sorted(root.iterdir())
    except OSError:
        return {}
    # Hidden folders are artifacts half written.
    return {path.name: path for path in entries if not path.name.startswith(".") and _is_artifact(path, root)}


def artifact_folder(root: Path, name: str) -> Path | None:
    """Return the artifact's folder of this name directly in the root, by the rules of ``artifact_folders``; None: none.

    Only this one folder is looked into, however many the root has.
    """
    try:
        path = next((path for path in root.iterdir() if path.name == name), None)
    except OSError:
        return None
    return path if path is not None and not name.startswith(".") and _is_artifact(path, root) else None


def _is_artifact(path: Path, root: Path) -> bool:
    try:
        folder, manifest = path.resolve(strict=True), (path / MANIFEST).resolve(strict=True)
        is_inside = folder.is_relative_to(root.resolve(strict=True)) and manifest.is_relative_to(folder)
        return is_inside and manifest.is_file()
    except (OSError, RuntimeError):  # gone meanwhile, or a loop of links
        return False
