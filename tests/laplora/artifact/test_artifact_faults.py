"""Artifacts that are not what they say: each is refused by a named error, without a crash, a wait or an allocation."""

from __future__ import annotations

import errno
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from damaged_artifacts import DAMAGES, TENSOR_FILES, claims, cuts
from safetensors.torch import save_file
from tiny_runs import FinishedRun

from laplora.answers.prediction import Prediction
from laplora.answers.review_scores import read_scores
from laplora.artifact.folder import new_artifact, read_artifact
from laplora.artifact.manifest import FAMILIARITY, POSTERIOR, SCORES
from laplora.errors import ArtifactCorruptError, ArtifactError, ArtifactWriteError, LaploraError
from laplora.familiarity.file import read_familiarity_for
from laplora.jacobians.contrasts import find_blocks
from laplora.models.adapters import attach_adapter
from laplora.models.shared_base import SharedBases, share
from laplora.posterior.file import read_posterior
from laplora.predictor import Predictor
from service.errors import kind_of

#: Room for what loading really needs: a claim of gigabytes does not fit.
ROOM_BYTES = 2**30


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


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Limit what the process may take."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let the process take ROOM_BYTES more at most while a test runs."""
    if sys.platform != "linux":
        pytest.skip("needs Linux's limit of a process's memory")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with limited(resource.RLIMIT_AS, size + ROOM_BYTES):
        yield


def answer(kept: Predictor) -> list[Prediction]:
    return kept.predict([kept.encode({"text": "The film was superb."}, truncate=True)], "laplace")


@pytest.fixture(scope="module")
def said(kept: Predictor) -> list[Prediction]:
    """What that predictor says before anything is damaged."""
    return answer(kept)


def outcome(call: Callable[[], Any]) -> str:
    """Return the name of the artifact error that a call raises, or what happened instead."""
    try:
        call()
    except ArtifactError as error:
        return type(error).__name__
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return "accepted"


def reader(kept: Predictor, folder: Path, file: str) -> Callable[[], Any]:
    """Return what reads one file of an artifact as loading does, behind its hash."""
    model, manifest, path = kept._adapted.model, kept.artifact.manifest, folder / file
    if file == SCORES:
        return lambda: read_scores(path, manifest.servable, manifest.calibration.rows)
    if file == FAMILIARITY:
        layers = manifest.familiarity.layers
        return lambda: read_familiarity_for(model, path, layers)
    if path.name == POSTERIOR:
        return lambda: read_posterior(path, find_blocks(model, len(manifest.labels)))
    return lambda: attach_adapter(share(kept.base.model), path.parent)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("file", TENSOR_FILES)
def test_a_file_cut_at_any_boundary_or_whose_header_claims_more(copy: Path, kept: Predictor, file: str) -> None:
    read, whole = reader(kept, copy, file), (copy / file).read_bytes()
    read()
    outcomes: dict[Any, set[str]] = {}
    for fault, broken in [*cuts(whole), *claims(whole)]:
        (copy / file).write_bytes(broken)
        outcomes[fault] = {outcome(lambda: read_artifact(copy)), outcome(read)}
    assert {fault: found for fault, found in outcomes.items() if found != {"ArtifactCorruptError"}} == {}


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
