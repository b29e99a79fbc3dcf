"""An artifact that new labels have conditioned, and the version of it that was packaged, which it keeps.

Labels change little of an artifact: ``CHANGED``, and the manifest. The folder ``packaged/`` keeps the packaged version
of these files, so that every conditioning begins with it and can be undone exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from laplora.artifact.folder import Artifact, file_records, new_artifact, read_artifact, write_manifest
from laplora.artifact.label_changes import history_of
from laplora.artifact.manifest import EXPERTS, GOLDEN, MANIFEST, ROWS, SCORES, Manifest, parse_manifest
from laplora.artifact.report_page import REPORT_PAGE
from laplora.errors import ArtifactCorruptError, ArtifactWriteError, ConfigError
from laplora.files.atomic import file_sha256, write_whole

#: Folder of what the packaged version had in place of the conditioned one's files.
PACKAGED = "packaged"
#: Its manifest: another name than the artifact's own, which alone is in no manifest.
PACKAGED_MANIFEST = f"{PACKAGED}/artifact.json"
#: The files that conditioning replaces.
CHANGED = (GOLDEN, SCORES, EXPERTS)
#: The file that conditioning adds: its metrics.
REPORT = "report/condition.json"
#: The fields of a manifest that conditioning changes.
_CHANGED_FIELDS = {
    *("name", "created", "experts", "familiarity", "calibration", "predictives", "recommended", "metrics", "data"),
    *("versions", "files"),
}
_CHANGED_WITH_LABELS = {"labels", "readout", "pool", "encoder"}  # by a change of labels too


def is_conditioned(manifest: Manifest) -> bool:
    """Return whether labels conditioned the artifact after it was packaged."""
    return PACKAGED_MANIFEST in manifest.files


def check_conditioned(artifact: Artifact) -> None:
    """Raise ConfigError where no labels came after the artifact was packaged."""
    if not is_conditioned(artifact.manifest):
        raise ConfigError(f"artifact {artifact.name!r} is as it was packaged: there is nothing to undo")


def packaged_manifest(artifact: Artifact) -> Manifest:
    """Return the manifest of the packaged version; the artifact's own where no labels came after.

    Its files are the conditioned version's own, and it differs in nothing that conditioning leaves as it is.

    Raises:
        ArtifactCorruptError: one that does not parse, or that is of another artifact.
        ArtifactIncompatibleError: one of another format version.
    """
    conditioned = artifact.manifest
    if not is_conditioned(conditioned):
        return conditioned
    packaged = parse_manifest(artifact.path.name, _read(artifact.path / PACKAGED_MANIFEST))
    # Only what was verified may be copied: a path in this manifest may lead anywhere.
    there, changed = conditioned.files, _CHANGED_FIELDS | (_CHANGED_WITH_LABELS if history_of(conditioned) else set())
    files = [f for f, record in packaged.files.items() if there.get(f"{PACKAGED}/{f}", there.get(f)) != record]
    fields = [f for f in Manifest.model_fields if f not in changed]
    if odd := [*files, *(f for f in fields if getattr(packaged, f) != getattr(conditioned, f))]:
        raise ArtifactCorruptError(
            f"artifact {artifact.path.name!r}: {PACKAGED_MANIFEST} is not of the version that it was conditioned from, "
            f"by {odd[:4]}: copy the artifact again"
        )
    return packaged


def packaged_file(folder: Path, name: str) -> Path:
    """Return where a file of the packaged version is."""
    kept = folder / PACKAGED / name
    return kept if kept.is_file() else folder / name


@contextmanager
def new_version(artifact: Artifact, target: Path, *, relabelled: bool = False) -> Iterator[Path]:
    """Yield a temporary folder with the packaged version, what labels change of it in ``packaged/``.

    It takes the place of ``target`` when the block ends without an error. The block writes ``CHANGED``, where it has
    them, and the manifest; if it is relabelled, rows and report too.

    Raises:
        ArtifactWriteError: no room; something that is no artifact in its place, or meanwhile another version.
        ArtifactCorruptError: a file of the artifact is another one than when it was read.
    """
    names = packaged_manifest(artifact).files
    if is_conditioned(artifact.manifest):
        source, digest = PACKAGED_MANIFEST, artifact.manifest.files[PACKAGED_MANIFEST].sha256
    else:
        source, digest = MANIFEST, artifact.digest.removeprefix("sha256:")
    with new_artifact(target) as folder:
        try:
            for name, record in names.items():
                moved = name in CHANGED or (relabelled and (name == ROWS or name.startswith("report/")))
                _copy(packaged_file(artifact.path, name), folder / (PACKAGED if moved else "") / name, record.sha256)
            _copy(artifact.path / source, folder / PACKAGED_MANIFEST, digest)
        except ArtifactCorruptError:
            _check_same(artifact)
            raise
        yield folder
        if target == artifact.path:
            _check_same(artifact)


def _check_same(artifact: Artifact) -> None:
    """Raise ArtifactWriteError where another version lies in the artifact's place by now."""
    with suppress(FileNotFoundError):
        if f"sha256:{file_sha256(artifact.path / MANIFEST)}" == artifact.digest:
            return
    raise ArtifactWriteError(
        f"the artifact {artifact.path.name!r} was replaced while a new version was made: nothing changed, try again"
    )


def finish_version(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with every file of the folder in it."""
    write_manifest(folder, manifest.model_copy(update={"files": file_records(folder)}))


def copy_artifact(artifact: Artifact, target: Path, manifest: Manifest, report: str | None) -> None:
    """Write an artifact's files into the place of ``target``, under a manifest of their own.

    Args:
        report: an HTML page in the place of the artifact's; None: that one, where there is one.

    Raises:
        ArtifactWriteError: no room, or something that is no artifact in its place.
        ArtifactCorruptError: a file of the artifact is another one than when it was read.
    """
    with new_artifact(target) as folder:
        for name, record in artifact.manifest.files.items():
            _copy(artifact.path / name, folder / name, record.sha256)
        if report is not None:
            (folder / REPORT_PAGE).parent.mkdir(exist_ok=True)
            write_whole(folder / REPORT_PAGE, report)
        finish_version(folder, manifest)


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
    check_conditioned(artifact)
    with new_artifact(path) as folder:
        for name, record in packaged_manifest(artifact).files.items():
            _copy(packaged_file(path, name), folder / name, record.sha256)
        _copy(path / PACKAGED_MANIFEST, folder / MANIFEST, artifact.manifest.files[PACKAGED_MANIFEST].sha256)
        check(folder)
    return read_artifact(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactCorruptError(f"{PACKAGED_MANIFEST} cannot be read: {error.strerror}") from None


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copy a file that is expected to have this SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        shutil.copyfile(source, target)
        if file_sha256(target) == sha256:
            return
    raise ArtifactCorruptError(
        f"{source.name} of the packaged version is missing or another one: copy the artifact again"
    )
