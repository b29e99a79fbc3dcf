"""Artifacts that are not what they say: each is refused by a named error, without a crash, a wait or an allocation."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from damaged_artifacts import DAMAGES
from heap import limited
from safetensors.torch import save_file
from tiny_runs import FinishedRun

from laplora.answers.prediction import Prediction
from laplora.artifact.folder import new_artifact, read_artifact
from laplora.errors import ArtifactCorruptError, ArtifactWriteError, LaploraError
from laplora.models.shared_base import SharedBases
from laplora.predictor import Predictor
from service.errors import kind_of


@pytest.fixture(scope="module")
def bases() -> SharedBases:
    return SharedBases()


@pytest.fixture(scope="module", autouse=True)
def kept(mixture_run: FinishedRun, bases: SharedBases) -> Predictor:
    """A predictor that keeps the base in memory, so that loading reads the files of an artifact alone."""
    return Predictor.load(mixture_run.artifact, device="cpu", bases=bases)


@pytest.fixture
def copy(mixture_run: FinishedRun, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixture_run.artifact, tmp_path / "tiny-mixture"))


def answer(kept: Predictor) -> list[Prediction]:
    return kept.predict([kept.encode({"text": "The film was superb."}, truncate=True)], "laplace")


@pytest.fixture(scope="module")
def said(kept: Predictor) -> list[Prediction]:
    """What that predictor says before anything is damaged."""
    return answer(kept)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be(copy: Path, bases: SharedBases, kept: Predictor, said: list[Prediction], name: str) -> None:
    """What is refused may have been attached to the shared base before: no other answer has changed."""
    damage, code = DAMAGES[name]
    damage(copy)
    with pytest.raises(LaploraError) as refused:
        Predictor.load(copy, device="cpu", bases=bases)
    assert kind_of(refused.value).code == code
    assert answer(kept) == said


def test_a_file_without_permissions(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who may read anything."""
    denied = mock.Mock(side_effect=PermissionError(errno.EACCES, "Permission denied"))
    monkeypatch.setattr("laplora.artifact.folder.file_sha256", denied)
    with pytest.raises(ArtifactCorruptError, match="cannot be read"):
        read_artifact(copy)


# No room.


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: save_file({"x": torch.zeros(2_000_000)}, folder / "x.safetensors"),
        lambda folder: (folder / "x").write_bytes(bytes(8_000_000)),
        mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")),
    ],
    ids=["tensors", "bytes", "disk"],
)
def test_a_full_disk_leaves_the_old_artifact_and_nothing_half(
    artifact_copy: Path, write: Callable[[Path], None]
) -> None:
    """As one is here: a file may not be written in full."""
    before, message = read_artifact(artifact_copy), f"no room to write the artifact '{artifact_copy.name}'"
    with limited(resource.RLIMIT_FSIZE, 100_000), pytest.raises(ArtifactWriteError, match=message):  # noqa: SIM117
        with new_artifact(artifact_copy) as new:
            write(new)
    assert [p.name for p in artifact_copy.parent.iterdir()] == [artifact_copy.name]
    assert read_artifact(artifact_copy) == before
