"""Distil: one adapter that learns a finished artifact's probabilities over unlabelled inputs, as a run of its own.

The student's configuration is the teacher's, with the section ``student``. Its adapter starts anew (Hinton et al.,
arXiv 1503.02531). Posterior, calibration, evaluation and packaging are those of every run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from laplora.artifact.folder import Artifact, read_artifact
from laplora.artifact.manifest import Manifest
from laplora.artifact.packaged import is_conditioned
from laplora.data.records import read_records
from laplora.errors import ConfigError
from laplora.predictive.kinds import PredictiveName
from training.config import RunConfig, bad_fields, config_hash_fields
from training.config.run import UNRECORDED, override_all
from training.config.student import DistilRequest
from training.data.hub_tables import PREFIX
from training.run import run
from training.workspace.terminal import say

#: The suffix of a student's name after its teacher's.
_SUFFIX = "-student"
#: Fields of a configuration, by section, that name files of rows. No artifact says which files are read.
_FILES = (("data", "path"),)
#: The field that names a data set of the hub, or a folder called so. A known one's name says where it is.
_HUB = ("data", "dataset")
#: The metrics of a predictive on the test rows that are shown.
_FIGURES = ("nll", "accuracy", "ece")


def distil(request: DistilRequest) -> Path:
    """Train, fit, evaluate and package the student of an artifact, and return its folder; a stopped one continues.

    Raises:
        ConfigError: a teacher that no run made, or as of ``training.workspace.student.open_student``.
        DataError: inputs or rows that cannot be used; ArtifactError: a teacher that cannot.
    """
    teacher = read_artifact(request.artifact)
    config = student_config(request, teacher)
    say(f"student of {teacher.name}: {config.name} below {config.runs}")
    folder = run(config)
    of_teacher = None if request.folds else request.predictive or teacher.manifest.recommended.predictive
    say(comparison(teacher, of_teacher, read_artifact(folder)))
    return folder


def student_config(request: DistilRequest, teacher: Artifact) -> RunConfig:
    """Return the configuration of a student: its teacher's, with as many passes over its rows.

    It keeps one adapter, and answers by one forward pass unless an override says otherwise. The teacher says neither
    which files of rows are read nor where anything is written: name and place are by the folder that the request names.

    Raises:
        ConfigError: a teacher that no run made or whose manifest is at odds with itself, a file of rows that it names
            and no override does, or overrides that cannot be.
    """
    fields = _recorded(request, teacher)
    place = request.artifact.resolve()
    fields |= {
        "name": f"{place.name}{_SUFFIX}",
        "artifacts": str(place.parent),
        "student": {
            "teacher": str(request.artifact),
            "inputs": str(request.inputs),
            "predictive": request.predictive,
            "folds": None if request.folds is None else str(request.folds),
            "label_weight": request.label_weight,
            "calibration": None if request.calibration is None else str(request.calibration),
        },
    }
    fields["fine_tune"] = True
    fields["calibration"]["rows"] = "held_out"
    fields["optimizer"].pop("class_weights", None)  # the teacher's probabilities have them already
    one_pass = "temperature" if fields["predictives"]["temperature"] else "map"
    fields["predictives"] |= {"serve": one_pass}
    fields["optimizer"]["steps"] = round(fields["optimizer"]["steps"] * _growth(request, teacher.manifest))
    named_again = [*_FILES, *([_HUB] if str(fields["data"].get("dataset")).startswith(PREFIX) else [])]
    recorded = {(section, key): fields[section].pop(key, None) for section, key in named_again}
    override_all(fields, request.overrides)
    _check_named(fields, recorded, teacher.name)
    try:
        return RunConfig.model_validate(fields)
    except ValidationError as error:
        raise bad_fields(request.artifact / "manifest.json", error, RunConfig) from None


def _recorded(request: DistilRequest, teacher: Artifact) -> dict[str, Any]:
    """Return the configuration that a teacher was made by, every section filled in.

    Raises:
        ConfigError: none, one that cannot be, or one of another base model than the manifest's.
    """
    fields = {k: v for k, v in teacher.manifest.config.items() if k not in UNRECORDED}
    if isinstance(base := fields.get("base"), dict):  # which said so of every base once
        fields["base"] = {k: v for k, v in base.items() if (k, v) != ("prune_layers", 0)}
    no_run = ConfigError(
        f"the teacher {teacher.name!r} was not made by 'python -m training run': it does not say which rows and "
        "which training to learn from"
    )
    if not {"data", "optimizer"} <= fields.keys():
        raise no_run
    try:
        config = RunConfig.model_validate(fields)
    except ValidationError as error:
        raise bad_fields(request.artifact / "manifest.json", error, RunConfig) from None
    if config.optimizer.steps is None:  # a run records how many they were
        raise no_run
    manifest, base = teacher.manifest, config.base
    of_manifest = (manifest.base_model, manifest.revision, manifest.quantization, manifest.dtype)
    if (base.model, base.revision, base.quantization, base.dtype) != of_manifest:
        raise ConfigError(
            f"the teacher {teacher.name!r} answers by the base model {manifest.base_model!r}, and its configuration "
            f"names {base.model!r}, or another format of it: one of the two was changed"
        )
    return config_hash_fields(config)


def _check_named(fields: Mapping[str, Any], recorded: Mapping[tuple[str, str], Any], teacher: str) -> None:
    """Raise ConfigError where a recorded file has not been named again."""
    options = [
        f"--set {shlex.quote(f'{section}.{key}={json.dumps(value)}')}"
        for (section, key), value in recorded.items()
        if value is not None and isinstance(fields[section], dict) and key not in fields[section]
    ]
    if options:
        raise ConfigError(
            f"the teacher {teacher!r} was made from files of rows, and a file is read only where you name it: if these "
            f"are the ones, add {' '.join(options)}"
        )


def comparison(teacher: Artifact, predictive: PredictiveName | None, student: Artifact) -> str:
    """Return the test figures of a student in words, beside its teacher's where they are of the same rows.

    Args:
        predictive: of the teacher; None where an average taught that the artifact does not serve.
    """
    served = student.manifest.recommended.predictive
    figures = [_figures("student", student.manifest, served)]
    if predictive and not is_conditioned(teacher.manifest) and _is_measured(teacher.manifest.metrics.get(predictive)):
        figures.append(_figures("teacher", teacher.manifest, predictive))
    return f"{student.manifest.metrics[served]['rows']} test rows: " + "; ".join(figures)


def _figures(who: str, manifest: Manifest, predictive: PredictiveName) -> str:
    found = manifest.metrics[predictive]
    return f"{who} by {predictive} NLL {found['nll']:.3f}, accuracy {found['accuracy']:.3f}, ECE {found['ece']:.3f}"


def _is_measured(found: object) -> bool:
    """Return whether what a manifest says of a predictive has the figures that are shown; nothing else checks it."""
    return isinstance(found, dict) and all(isinstance(found.get(name), int | float) for name in _FIGURES)


def _growth(request: DistilRequest, manifest: Manifest) -> float:
    """Return how many rows the student goes over for each of its teacher's, so that it goes over them as often.

    Raises ConfigError for a manifest that does not count its rows.
    """
    counts = manifest.data.get("rows")
    trained, calibration = (counts.get(part) if isinstance(counts, dict) else None for part in ("train", "calibration"))
    if not (isinstance(trained, int) and isinstance(calibration, int) and trained >= 1 and calibration >= 0):
        raise ConfigError(f"the manifest of {manifest.name!r} does not count the rows that trained and calibrated it")
    further = len(read_records(request.inputs)) + (calibration if request.calibration else 0)
    return float((trained + further) / trained)
