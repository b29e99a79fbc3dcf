"""A run that is a student: its teacher, the inputs that it learns from, and which rows may calibrate it.

A row may calibrate a student if its label has trained neither the student nor the teacher. A teacher's temperature or
prior is one number of its calibration rows, and counts as nothing. A correction by labels is as many numbers as labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from laplora.artifact.folder import Artifact, read_artifact
from laplora.artifact.manifest import ADAPTER_FOLDER, Manifest
from laplora.data.labelled import examples_of, read_inputs
from laplora.data.records import read_records
from laplora.errors import ConfigError, DataError
from laplora.features.store import digest, rows_digest
from laplora.files.atomic import file_sha256
from laplora.predictive.kinds import PREDICTIVES, PredictiveName
from laplora.prompts.examples import Example
from training.config import RunConfig
from training.config.student import StudentConfig
from training.data.examples import Role, Splits
from training.data.splitting import FurtherRows, check, class_counts, further_rows
from training.workspace.same_rows import check_same_rows
from training.workspace.terminal import say

_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Student:
    """Whose answers a run learns, and to what.

    Attributes:
        teacher: the artifact; predictive: the one of it that answers.
        folds: folders of further adapters, whose probabilities are averaged with the artifact's.
        inputs: unlabelled, none of them a question of the splits.
        label_weight: share of a training row's target that is its label.
    """

    teacher: Artifact
    predictive: PredictiveName
    inputs: tuple[Example, ...]
    label_weight: float
    folds: tuple[Path, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of everything that the teacher's answers depend on, and how they are used."""
        return digest(self.answers_digest, rows_digest(self.inputs), self.label_weight)

    @property
    def answers_digest(self) -> str:
        """Digest of whose answers they are."""
        return digest(self.teacher.digest, self.predictive, *(file_sha256(folder / _WEIGHTS) for folder in self.folds))

    def record(self) -> dict[str, Any]:
        """Return what an artifact records of it, JSON-able."""
        return {
            "teacher": self.teacher.name,
            "teacher_digest": self.teacher.digest,
            "predictive": self.predictive,
            "folds": len(self.folds),
            "inputs": len(self.inputs),
            "label_weight": self.label_weight,
        }


def open_student(config: RunConfig, settings: StudentConfig, splits: Splits) -> tuple[Student, Splits]:
    """Return the student of a run and the splits as it has them, with a file's rows to calibrate on if it names one.

    Args:
        splits: of the run; with a calibration file its own calibration rows are among the training rows.

    Raises:
        ConfigError: a teacher that answers for other labels, was made from other rows, is itself a student, lacks the
            predictive, or has learned from the labels that would calibrate.
        DataError: a file that cannot be used, or of which nothing is left.
        ArtifactError: a teacher that cannot be read.
    """
    teacher = read_artifact(settings.teacher)
    manifest = teacher.manifest
    predictive = settings.predictive or manifest.recommended.predictive
    folds: tuple[Path, ...] = ()
    if settings.folds is not None:
        predictive = settings.predictive or ("temperature" if "temperature" in manifest.servable else "map")
        folds = fold_adapters(settings.folds, manifest, predictive)
    _check_teacher(config, manifest, predictive, splits)
    if settings.calibration is None:
        _check_calibration(manifest, predictive)
    else:
        splits = calibrated_on(config, settings.calibration, splits)
    rows = further_rows(read_inputs(settings.inputs, splits.task), splits.task, splits)
    _tell(settings.inputs, rows)
    return Student(teacher, predictive, rows.examples, settings.label_weight, folds), splits


def fold_adapters(run_folder: Path, manifest: Manifest, predictive: PredictiveName) -> tuple[Path, ...]:
    """Return the folders of the adapters of a teacher's folds; ConfigError where a folder is not of its run."""
    name = manifest.name
    if manifest.config["calibration"].get("rows") != "cross_fit":
        raise ConfigError(f"folds: the run of {name!r} has none: train a teacher with calibration.rows: cross_fit")
    if predictive not in ("temperature", "map"):
        raise ConfigError(f"folds: adapters are averaged by temperature or map, not by {predictive}")
    served = run_folder / "adapter" / _WEIGHTS
    record = manifest.files.get(f"{ADAPTER_FOLDER}/{_WEIGHTS}")  # None of a frozen fit
    if record is None or not served.is_file() or file_sha256(served) != record.sha256:
        raise ConfigError(
            f"folds: {run_folder} is not the folder of the run that made {name!r}: its adapter is another"
        )
    folders = sorted((run_folder / "folds").glob(f"*/adapter/{_WEIGHTS}"))
    count = min(manifest.calibration.folds, manifest.calibration.rows)
    if len(folders) != count:
        raise ConfigError(f"folds: {run_folder} has {len(folders)} of the {count} adapters of the folds of {name!r}")
    return tuple(path.parent for path in folders)


def calibrated_on(config: RunConfig, path: Path, splits: Splits) -> Splits:
    """Return splits whose calibration rows are a file's; DataError where all of them are rows of the splits."""
    data, task = config.data, splits.task
    examples = examples_of(path, read_records(path), task, data.label_field, data.label_map, {})
    rows = further_rows(examples, task, splits)
    _tell(path, rows)
    found = replace(splits, calibration=rows.examples)
    parts: dict[Role, tuple[Example, ...]] = {
        "train": found.train,
        "calibration": found.calibration,
        "test": found.test,
    }
    for line in (warnings := check(task, parts)):
        say(f"warning: {line}")
    report = splits.report | {
        "rows": {role: len(part) for role, part in parts.items()},
        "classes": {role: class_counts(task, part) for role, part in parts.items()},
        "warnings": warnings,
    }
    return replace(found, report=report)


def learned_labels(manifest: Manifest, predictive: PredictiveName) -> str | None:
    """Return how a teacher's answers hold the labels of its calibration rows, in words; None where they do not."""
    if manifest.config["calibration"].get("rows") == "cross_fit":
        return "was trained on every label (calibration.rows: cross_fit)"
    if predictive not in PREDICTIVES:
        return f"answers by {predictive}, which learned the labels of its calibration rows"
    return None


def _check_calibration(manifest: Manifest, predictive: PredictiveName) -> None:
    reason = learned_labels(manifest, predictive)
    if reason is None:
        return
    others = [name for name in manifest.servable if learned_labels(manifest, name) is None]
    nll = {name: manifest.predictives[name].nll for name in others}
    other = f", or learn from --predictive {min(others, key=nll.__getitem__)}" if others else ""
    raise ConfigError(
        f"the teacher {manifest.name!r} {reason}, so its student would be calibrated on labels that it knows: give "
        f"--calibration FILE with labelled rows that the teacher never saw{other}"
    )


def _check_teacher(config: RunConfig, manifest: Manifest, predictive: PredictiveName, splits: Splits) -> None:
    if manifest.labels != splits.task.labels:
        raise ConfigError(
            f"the teacher {manifest.name!r} answers with {list(manifest.labels)[:8]}, the run has the labels "
            f"{list(splits.task.labels)[:8]}: they must be the same, in the same order"
        )
    if manifest.config.get("student"):
        raise ConfigError(f"the teacher {manifest.name!r} is itself a student: learn from its teacher")
    check_same_rows(config, manifest, splits, ("source_detail", "available"))
    if predictive not in manifest.servable:
        raise ConfigError(
            f"the teacher {manifest.name!r} has no predictive {predictive!r}: it has {list(manifest.servable)}"
        )


def _tell(path: Path, rows: FurtherRows) -> None:
    """Say what of a file is left; DataError where it is nothing."""
    left_out = f"{rows.in_splits} are training, calibration or test rows, {rows.repeated} repeat an earlier one"
    if not rows.examples:
        raise DataError(f"{path}: no row is left ({left_out})")
    say(f"{path.name}: {len(rows.examples)} rows" + (f"; {left_out}" if rows.in_splits or rows.repeated else ""))
