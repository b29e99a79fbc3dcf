"""A conditioned artifact keeps its packaged version: what it says of it is checked before a file is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import reseal

from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import GOLDEN, MANIFEST, SCORES
from laplora.artifact.packaged import (
    CHANGED,
    PACKAGED_MANIFEST,
    finish_version,
    new_version,
    packaged_manifest,
    restore_packaged,
)
from laplora.errors import ArtifactCorruptError, ArtifactWriteError


def make_version(folder: Path, target: Path | None = None, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Write a version that labels changed nothing of; something else happens before it takes its place."""
    artifact = read_artifact(folder)
    with new_version(artifact, target or folder) as new:
        for name in CHANGED:
            shutil.copyfile(folder / name, new / name)
        finish_version(new, artifact.manifest.model_copy(update={"created": "later"}))
        meanwhile()


@pytest.fixture
def conditioned(artifact_copy: Path) -> Path:
    make_version(artifact_copy)
    return artifact_copy


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a conditioned artifact says of its packaged version, and seal it again."""
    fields = json.loads((folder / PACKAGED_MANIFEST).read_text())
    change(fields)
    (folder / PACKAGED_MANIFEST).write_text(json.dumps(fields))
    reseal(folder)


def refused(folder: Path, message: str) -> None:
    for use in (packaged_manifest, lambda artifact: restore_packaged(artifact.path)):
        with pytest.raises(ArtifactCorruptError, match=message):
            use(read_artifact(folder))
    with pytest.raises(ArtifactCorruptError, match=message):
        make_version(folder)


def test_a_path_that_leads_out_of_the_folder_writes_nothing(conditioned: Path) -> None:
    victim = conditioned.parent / "victim"
    (conditioned / "victim").mkdir()
    (conditioned / "victim" / GOLDEN).write_text("mine")
    victim.mkdir()
    (victim / GOLDEN).write_text("yours")
    record = {"sha256": "0" * 64, "size_bytes": 4}
    rewrite(conditioned, lambda fields: fields["files"].update({f"../victim/{GOLDEN}": record}))
    refused(conditioned, "not of the version that it was conditioned from")
    assert (victim / GOLDEN).read_text() == "yours"


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(labels=fields["labels"][::-1]),
        lambda fields: fields.update(max_tokens=10**6),
        lambda fields: fields["prior"].update(precision={"all": 1.0}),
        lambda fields: fields["template"].update(text="{other}"),
        lambda fields: fields["files"][GOLDEN].update(sha256="0" * 64),
        lambda fields: fields["files"].update(more=fields["files"][SCORES]),
    ],
)
def test_a_packaged_version_of_another_artifact_is_refused(
    conditioned: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(conditioned, change)
    refused(conditioned, "not of the version that it was conditioned from")


def test_an_artifact_that_is_replaced_meanwhile_stays(artifact_copy: Path) -> None:
    other = Path(shutil.copytree(artifact_copy, artifact_copy.parent / "other"))
    reseal(other, created="of somebody else")

    def replace() -> None:
        shutil.rmtree(artifact_copy)
        other.rename(artifact_copy)

    with pytest.raises(ArtifactWriteError, match=r"notes\.txt"):
        make_version(artifact_copy, meanwhile=lambda: (artifact_copy / "notes.txt").write_text("mine"))
    assert (artifact_copy / "notes.txt").read_text() == "mine"
    (artifact_copy / "notes.txt").unlink()
    with pytest.raises(ArtifactWriteError, match="was replaced while"):
        make_version(artifact_copy, meanwhile=replace)
    assert read_artifact(artifact_copy).manifest.created == "of somebody else"
    assert [p.name for p in artifact_copy.parent.iterdir()] == [artifact_copy.name]


def test_a_version_is_never_of_two_artifacts(artifact_copy: Path, tmp_path: Path) -> None:
    """Files are those of the artifact that was read, whatever lies in its folder by now."""
    artifact = read_artifact(artifact_copy)
    for name in (MANIFEST, SCORES):
        kept = (artifact_copy / name).read_bytes()
        (artifact_copy / name).write_bytes(kept + b" ")
        with (
            pytest.raises(ArtifactCorruptError, match=f"{name} of the packaged version is missing or another"),
            new_version(artifact, tmp_path / "new"),
        ):
            pass
        (artifact_copy / name).write_bytes(kept)
    assert not (tmp_path / "new").exists()
