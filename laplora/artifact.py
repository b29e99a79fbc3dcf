"""The artifact: a folder that holds everything a served answer depends on, but for the base weights.

``artifacts/FORMAT.md`` is the written format. An artifact is written to a temporary folder and renamed, so
a reader never sees half of one; it is verified against its manifest whenever it is read.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from laplora.artifact_v1 import upgraded
from laplora.conformal import ConformalScore
from laplora.errors import ArtifactCorruptError, ArtifactError, ArtifactIncompatibleError, ArtifactNotFoundError
from laplora.model import BaseSpec
from laplora.posterior import Prior
from laplora.predictives import PREDICTIVES, PredictiveName, PredictiveSpec, predictive_spec
from laplora.prompts import PromptTemplate
from laplora.thresholds import ModeThresholds
from laplora.wheels import file_sha256

FORMAT_VERSION = 2
#: Versions that are read; older ones as what they would be in this one (``laplora.artifact_v1``).
READ_VERSIONS = (1, FORMAT_VERSION)
MANIFEST = "manifest.json"
POSTERIOR = "posterior.safetensors"
GOLDEN = "golden.json"
SCORES = "scores.safetensors"
ADAPTER_FOLDER = "adapter"
#: What every artifact has, next to its manifest. The adapter is never the pickled file that PEFT would fall back to.
ADAPTER_FILES = (f"{ADAPTER_FOLDER}/adapter_config.json", f"{ADAPTER_FOLDER}/adapter_model.safetensors")
REQUIRED = (*ADAPTER_FILES, POSTERIOR, GOLDEN)


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

    method: Literal["validation", "evidence", "leave_one_out"]
    granularity: Literal["scalar", "group", "module"]
    precision: dict[str, float]
    objective: float = Field(description="nats: log evidence, or minus the mean held-out NLL")

    def prior(self) -> Prior:
        """Return the prior."""
        return Prior(self.granularity, self.precision)


class CalibrationRecord(_Record):
    """The calibration split, and what was asked of it."""

    split: str = Field(description="its name")
    rows: int = Field(ge=0)
    coverage: float = Field(gt=0, lt=1, description="nominal, of the prediction sets")
    conformal: ConformalScore = Field(description="score of the prediction sets")
    scores: Literal["scores.safetensors"] | None = Field(
        description="file of what each predictive's review score was on these rows, and where it erred; null: none"
    )


class MemberRecord(_Record):
    """A further adapter of the ensemble, in a folder of its own."""

    folder: str = Field(pattern=r"^members/[1-9][0-9]{0,3}$")
    step: int = Field(ge=1, description="optimizer step at which it was kept")
    prior: PriorRecord | None = Field(description="of its posterior; null when it has none")


class DropoutRecord(_Record):
    """The masks of MC dropout: numbers enough to draw them again."""

    probability: float = Field(gt=0, lt=1, description="of an input feature to be dropped")
    members: int = Field(ge=2, description="masks")
    seed: int = Field(ge=0)


class PredictiveRecord(_Record):
    """One way to turn a row into probabilities, and what was fitted for it on the calibration split."""

    members: Literal["single", "checkpoints", "dropout"]
    member_count: int = Field(ge=1)
    covariance: bool = Field(description="whether each member carries its posterior")
    temperature: float = Field(gt=0, description="divides the logits; 1 where none was fitted")
    nll: float | None = Field(description="nats, mean over the calibration rows, fitted on the same rows")
    thresholds: ModeThresholds | None = Field(description="null: it is reported beside another, and serves no answer")
    conformal: float | None = Field(description="threshold of its prediction sets; null with the thresholds")


class RecommendedRecord(_Record):
    """The predictive that answers unless a request names another."""

    predictive: PredictiveName
    reason: str
    chosen_by: Literal["calibration", "configuration"]
    table: dict[str, dict[str, float]] = Field(description="by predictive, cross-fitted on the calibration split")


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
    members: tuple[MemberRecord, ...] = Field(description="the ensemble's adapters beside the trained one")
    dropout: DropoutRecord | None
    calibration: CalibrationRecord
    predictives: dict[PredictiveName, PredictiveRecord]
    recommended: RecommendedRecord
    metrics: dict[str, Any] = Field(description="on the test split, by method")
    config: dict[str, Any] = Field(description="the run's configuration, resolved")
    data: dict[str, Any] = Field(description="source, sizes and seeds of the splits")
    versions: dict[str, str] = Field(description="of the packages that made it")
    files: dict[str, FileRecord] = Field(description="every other file, by path in the artifact")

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        counts = {
            "single": 1,
            "checkpoints": 1 + len(self.members),
            "dropout": self.dropout.members if self.dropout else 0,
        }
        for name, record in self.predictives.items():
            spec = PREDICTIVES[name]
            if (record.members, record.covariance) != (spec.members, spec.covariance):
                raise ValueError(f"predictives.{name} is a mixture over {spec.members}, covariance {spec.covariance}")
            if record.member_count != counts[record.members]:
                raise ValueError(
                    f"predictives.{name} has {record.member_count} members, the artifact {counts[record.members]}"
                )
            if (record.thresholds is None) != (record.conformal is None):
                raise ValueError(f"predictives.{name} has only one of thresholds and conformal")
        if self.predictives.get("laplace_ensemble") and any(m.prior is None for m in self.members):
            raise ValueError("predictives.laplace_ensemble needs a posterior of every member")
        if len({m.folder for m in self.members}) != len(self.members):
            raise ValueError("two members are in one folder")
        for name in ("map", self.recommended.predictive):
            if name not in self.servable:
                raise ValueError(f"the artifact must have the predictive {name!r}, with thresholds")
        return self

    @property
    def servable(self) -> tuple[PredictiveName, ...]:
        """The predictives that a request can ask for, in order."""
        return tuple(name for name, record in self.predictives.items() if record.thresholds is not None)

    def spec(self, name: PredictiveName) -> PredictiveSpec:
        """Return one of the artifact's predictives with its temperature."""
        return predictive_spec(name, self.predictives[name].temperature)

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

    An artifact that is replaced while it is read is read again: the result is the old one or the new one.

    Raises:
        ArtifactNotFoundError: no such folder, or one without a manifest.
        ArtifactIncompatibleError: written in another format version.
        ArtifactCorruptError: a manifest that does not parse; a file missing, left over, cut, changed or
            unreadable; a link out of the folder.
    """
    while True:
        before = _identity(path)
        try:
            artifact = _read_once(path)
        except ArtifactError:
            if _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return artifact


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells a folder from the one that replaces it under the same name.

    The times too: a file system gives the number of a folder that is gone to the next one.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read_once(path: Path) -> Artifact:
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ArtifactNotFoundError(
            f"no artifact at {path.name!r}: expected a folder with a {MANIFEST}; 'python -m training run' makes one"
        )
    try:
        raw = manifest_path.read_bytes()
        manifest = _parse_manifest(path.name, raw)
        _verify_files(path, manifest)
    except OSError as error:
        raise ArtifactCorruptError(f"artifact {path.name!r} cannot be read: {error.strerror}") from None
    return Artifact(path, manifest, "sha256:" + hashlib.sha256(raw).hexdigest())


def _parse_manifest(name: str, raw: bytes) -> Manifest:
    try:
        fields = json.loads(raw)
        version = fields["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactCorruptError(
            f"{MANIFEST} of {name!r} is not a JSON manifest: expected an object with a format_version"
        ) from None
    if type(version) is not int or version not in READ_VERSIONS:
        raise ArtifactIncompatibleError(
            f"artifact {name!r} has format {str(version)[:32]}, this version reads "
            f"{' and '.join(map(str, READ_VERSIONS))}: package it again"
        )
    try:
        return Manifest.model_validate(upgraded(fields) if version == 1 else fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactCorruptError(f"{MANIFEST} of {name!r} lacks fields of format 1: {error}") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:4])
        raise ArtifactCorruptError(f"{MANIFEST} of {name!r} has bad fields: {problems}") from None


def _verify_files(path: Path, manifest: Manifest) -> None:
    root = path.resolve()
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()} - {MANIFEST}
    wanted = {*manifest.files, *REQUIRED, *({SCORES} if manifest.calibration.scores else set())}
    for member in manifest.members:
        wanted |= {f"{member.folder}/{file}" for file in ADAPTER_FILES}
        wanted |= {f"{member.folder}/{POSTERIOR}"} if member.prior else set()
    missing, extra = sorted(wanted - present), sorted(present - set(manifest.files))
    if missing or extra:
        raise ArtifactCorruptError(
            f"artifact {path.name!r}: files missing {missing[:4]}, not in the manifest {extra[:4]}"
        )
    for name in (MANIFEST, *manifest.files):
        if not (path / name).resolve().is_relative_to(root):
            raise ArtifactCorruptError(f"artifact {path.name!r}: {name} leads out of the folder")
        if not (path / name).is_file():
            raise ArtifactCorruptError(f"artifact {path.name!r}: {name} is not a regular file")
    for name, record in manifest.files.items():
        _verify_file(path, name, record)


def _verify_file(path: Path, name: str, record: FileRecord) -> None:
    file = path / name
    size = file.stat().st_size
    if size != record.size_bytes:
        with file.open("rb") as handle:
            pointer = handle.read(64).startswith(b"version https://git-lfs")
        hint = ": it is a git-lfs pointer, fetch the real file with 'git lfs pull'" if pointer else ""
        raise ArtifactCorruptError(
            f"artifact {path.name!r}: {name} has {size} bytes, the manifest says {record.size_bytes}{hint}"
        )
    digest = file_sha256(file)
    if digest != record.sha256:
        raise ArtifactCorruptError(
            f"artifact {path.name!r}: {name} has the SHA-256 {digest[:12]}..., the manifest says "
            f"{record.sha256[:12]}...: it is not the file that was written, copy the artifact again"
        )


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
        _replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(new: Path, target: Path) -> None:
    """Move ``new`` to ``target``; what was there before ends up at ``new``, or is gone."""
    if not target.exists():
        new.rename(target)
        return
    if _exchange(new, target):
        return
    # where folders cannot change places in one step, the name is free for a moment
    old = new.with_suffix(".old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, where the system can (Linux); return whether it did."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
