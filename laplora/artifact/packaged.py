"""An artifact that new labels have conditioned, and the version of it that was packaged, which it keeps.

Labels change little of an artifact: ``CHANGED``, and the manifest. Of these files the packaged version's lie in the
folder ``packaged/``, so that every conditioning begins with the same version and can be undone to the byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from laplora.artifact.folder import Artifact, file_records, new_artifact, read_artifact, write_manifest
from laplora.artifact.manifest import GOLDEN, MANIFEST, SCORES, SHIFT, Manifest, parse_manifest
from laplora.errors import ArtifactCorruptError, ConfigError

#: Folder of what the packaged version had in place of the conditioned one's files.
PACKAGED = "packaged"
#: Its manifest: another name than the artifact's own, which alone is in no manifest.
PACKAGED_MANIFEST = f"{PACKAGED}/artifact.json"
#: What conditioning replaces.
CHANGED = (GOLDEN, SCORES, SHIFT)
#: What conditioning adds: its figures.
REPORT = "report/condition.json"


def is_conditioned(manifest: Manifest) -> bool:
    """Return whether labels conditioned the artifact after it was packaged."""
    return PACKAGED_MANIFEST in manifest.files


def packaged_manifest(artifact: Artifact) -> Manifest:
    """Return the manifest of the packaged version; the artifact's own where no labels came after.

    Raises:
        ArtifactCorruptError: one that does not parse.
    """
    if not is_conditioned(artifact.manifest):
        return artifact.manifest
    return parse_manifest(artifact.path.name, (artifact.path / PACKAGED_MANIFEST).read_bytes())


def packaged_file(folder: Path, name: str) -> Path:
    """Return where a file of the packaged version is."""
    kept = folder / PACKAGED / name
    return kept if kept.is_file() else folder / name


@contextmanager
def new_version(artifact: Artifact, target: Path) -> Iterator[Path]:
    """Yield a temporary folder with the packaged version, what labels change of it in ``packaged/``.

    It takes the place of ``target`` when the block ends without an error. The block writes ``CHANGED``, where it has
    them, and the manifest.

    Raises:
        ArtifactWriteError: no room, or something that is no artifact in its place.
    """
    names = packaged_manifest(artifact).files
    manifest = PACKAGED_MANIFEST if is_conditioned(artifact.manifest) else MANIFEST
    with new_artifact(target) as folder:
        for name in names:
            _copy(packaged_file(artifact.path, name), folder / (f"{PACKAGED}/{name}" if name in CHANGED else name))
        _copy(artifact.path / manifest, folder / PACKAGED_MANIFEST)
        yield folder


def finish_version(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with every file of the folder in it."""
    write_manifest(folder, manifest.model_copy(update={"files": file_records(folder)}))


def restore_packaged(path: str | Path, check: Callable[[Path], object] = read_artifact) -> Artifact:
    """Put the packaged version back in the place of a conditioned artifact, byte for byte, and return it.

    Args:
        path: the artifact's folder.
        check: of the whole folder, before it takes its place; what it raises leaves everything as it is.

    Raises:
        ConfigError: no labels came after it was packaged.
        ArtifactError: an artifact that cannot be read or written; what was there stays.
    """
    path = Path(path)
    artifact = read_artifact(path)
    if not is_conditioned(artifact.manifest):
        raise ConfigError(f"artifact {artifact.name!r} is as it was packaged: there is nothing to undo")
    with new_artifact(path) as folder:
        for name in packaged_manifest(artifact).files:
            _copy(packaged_file(path, name), folder / name)
        _copy(path / PACKAGED_MANIFEST, folder / MANIFEST)
        check(folder)
    return read_artifact(path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise ArtifactCorruptError(
            f"{source.name} of the packaged version is missing: copy the artifact again"
        ) from None
