"""The artifact: a folder that holds everything a served answer depends on, but for the base weights.

``artifacts/FORMAT.md`` is the written format. An artifact is written to a temporary folder and renamed, so
a reader never sees half of one; it is verified against its manifest whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laplora.errors import ArtifactCorruptError, ArtifactIncompatibleError, ArtifactNotFoundError
from laplora.model import BaseSpec
from laplora.posterior import Prior
from laplora.prompts import PromptTemplate
from laplora.uncertainty import Thresholds

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
POSTERIOR = "posterior.safetensors"
GOLDEN = "golden.json"
ADAPTER_FOLDER = "adapter"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileRecord(_Record):
    """One file of the artifact."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class TemplateRecord(_Record):
    """The prompt template, whole."""

    name: str
    version: int
    text: str
    choice: str
    choice_separator: str
    label_prefix: str

    def template(self) -> PromptTemplate:
        """Return the template."""
        return PromptTemplate(**self.model_dump())


class PriorRecord(_Record):
    """The served prior and how it was chosen."""

    method: Literal["validation", "evidence"]
    granularity: Literal["scalar", "group", "module"]
    precision: dict[str, float]
    objective: float = Field(description="nats: log evidence, or minus the mean held-out NLL")

    def prior(self) -> Prior:
        """Return the prior."""
        return Prior(self.granularity, self.precision)


class CalibrationRecord(_Record):
    """What was taken from the calibration split."""

    rows: int = Field(ge=0)
    temperature: float = Field(gt=0)
    thresholds: Thresholds
    conformal: dict[Literal["laplace", "map"], float] = Field(
        description="per mode, labels of probability at least 1 minus this are in the prediction set"
    )
    coverage: float = Field(gt=0, lt=1, description="nominal, of the prediction sets")


class Manifest(_Record):
    """Everything about an artifact but its tensors."""

    format_version: int = Field(description="of the format, see artifacts/FORMAT.md")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    created: str = Field(description="UTC, ISO 8601")
    base_model: str
    revision: str | None
    base_weights_hash: str
    quantization: Literal["nf4", "none"]
    dtype: Literal["bfloat16", "float32"]
    tokenizer_hash: str
    template: TemplateRecord
    labels: tuple[str, ...] = Field(min_length=2)
    label_token_ids: tuple[int, ...] = Field(min_length=2)
    max_tokens: int = Field(ge=8)
    prior: PriorRecord
    calibration: CalibrationRecord
    metrics: dict[str, Any] = Field(description="on the test split, by method")
    config: dict[str, Any] = Field(description="the run's configuration, resolved")
    data: dict[str, Any] = Field(description="source, sizes and seeds of the splits")
    versions: dict[str, str] = Field(description="of the packages that made it")
    files: dict[str, FileRecord] = Field(description="every other file, by path in the artifact")

    @property
    def base(self) -> BaseSpec:
        """The base model this artifact belongs to."""
        return BaseSpec(self.base_model, self.revision, self.quantization, self.dtype)


@dataclass(frozen=True)
class Artifact:
    """A verified artifact on disk.

    Attributes:
        path: its folder.
        manifest: its manifest.
        digest: ``sha256:`` and the digest of the manifest's bytes, which hold every other file's digest.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def name(self) -> str:
        """The artifact's name."""
        return self.manifest.name


def read_artifact(path: Path) -> Artifact:
    """Return the artifact in a folder, after checking every file against the manifest.

    Raises:
        ArtifactNotFoundError: no such folder, or one without a manifest.
        ArtifactIncompatibleError: written in another format version.
        ArtifactCorruptError: a manifest that does not parse; a file missing, left over, cut or changed; a
            link out of the folder.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ArtifactNotFoundError(
            f"no artifact at {path.name!r}: expected a folder with a {MANIFEST}; 'python -m training run' makes one"
        )
    raw = manifest_path.read_bytes()
    try:
        fields = json.loads(raw)
        version = fields["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactCorruptError(f"{MANIFEST} of {path.name!r} is not a JSON manifest") from None
    if version != FORMAT_VERSION:
        raise ArtifactIncompatibleError(
            f"artifact {path.name!r} has format {version!r}, this version reads {FORMAT_VERSION}: package it again"
        )
    try:
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:4])
        raise ArtifactCorruptError(f"{MANIFEST} of {path.name!r} has bad fields: {problems}") from None
    _verify_files(path, manifest)
    return Artifact(path, manifest, "sha256:" + hashlib.sha256(raw).hexdigest())


def _verify_files(path: Path, manifest: Manifest) -> None:
    root = path.resolve()
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()} - {MANIFEST}
    missing, extra = sorted(set(manifest.files) - present), sorted(present - set(manifest.files))
    if missing or extra:
        raise ArtifactCorruptError(
            f"artifact {path.name!r}: files missing {missing[:4]}, not in the manifest {extra[:4]}"
        )
    for name, record in manifest.files.items():
        file = path / name
        if not file.resolve().is_relative_to(root):
            raise ArtifactCorruptError(f"artifact {path.name!r}: {name} leads out of the folder")
        size = file.stat().st_size
        if size != record.size_bytes:
            pointer = file.open("rb").read(64).startswith(b"version https://git-lfs")
            hint = ": it is a git-lfs pointer, fetch the real file with 'git lfs pull'" if pointer else ""
            raise ArtifactCorruptError(
                f"artifact {path.name!r}: {name} has {size} bytes, the manifest says {record.size_bytes}{hint}"
            )
        if file_sha256(file) != record.sha256:
            raise ArtifactCorruptError(f"artifact {path.name!r}: {name} is not the file that the manifest names")


def file_sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Return a record of every file in a folder but the manifest, by path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        p.relative_to(folder).as_posix(): FileRecord(sha256=file_sha256(p), size_bytes=p.stat().st_size) for p in files
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of an artifact."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


@contextmanager
def new_artifact(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``target`` when the block ends without an error.

    An older artifact there is replaced; on an error it stays and the temporary folder goes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for item in [partial, *partial.rglob("*")]:
            item.chmod(0o755 if item.is_dir() else 0o644)
        old = target.parent / f".{target.name}.{os.getpid()}.old"
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
