"""Versions of an artifact: conditioned on labels that came later, and put back as it was packaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

from laplora.answers.golden import golden_entry, read_golden
from laplora.answers.prediction import Prediction
from laplora.answers.review_scores import score_tensors
from laplora.artifact.adapted import state_width
from laplora.artifact.folder import Artifact, check_name, check_replaceable, read_artifact
from laplora.artifact.manifest import GOLDEN, SCORES, SHIFT, Manifest
from laplora.artifact.packaged import (
    REPORT,
    finish_version,
    is_conditioned,
    new_version,
    packaged_file,
    packaged_manifest,
)
from laplora.errors import ConditioningError
from laplora.files import write_json, write_tensors
from laplora.fitting.conditioning import shifts_of
from laplora.fitting.describing import installed_versions, summary
from laplora.fitting.new_labels import Comparison, NewLabels, check_count, condition_on
from laplora.fitting.progress import Progress, shown_by
from laplora.fitting.rows import read_rows
from laplora.fitting.saving import TOLERANCE, VARIANCE_TOLERANCE, conditioned_record
from laplora.fitting.served_rows import LoadedClassifier, Run
from laplora.predictive.kinds import Corrected
from laplora.predictive.shift import Shift
from laplora.predictive.shift_file import read_shifts, shift_tensors
from laplora.predictor import Predictor
from laplora.prompts.examples import Example


def condition(
    artifact: str | Path,
    rows: Any,
    *,
    calibration: Any = None,
    out: str | Path | None = None,
    label_field: str = "label",
    groups: str | None = None,
    force: bool = False,
    device: str = "auto",
    progress: bool | Progress = True,
) -> Comparison:
    """Write the version of an artifact that learned from further labels, without training, and return what they change.

    The new version is the artifact as it was packaged, conditioned on all rows that are given: not on top of an earlier
    call's. So rows that came before are given again, and one that is left out is forgotten.

    Args:
        artifact: its folder.
        rows: labelled rows, 20 or more: dicts with the template's fields and a label, in a list or an
            iterator; a data frame; a ``datasets.Dataset``. None of them may have trained or calibrated the artifact.
        calibration: the rows that calibrated it, if they are at hand: they then condition together with the new ones,
            which learns more from both, most where the new ones are few.
        out: folder of the new version; None: in the place of the artifact, which ``restore_packaged`` undoes.
        label_field, groups: as of ``laplora.fit``.
        force: whether to write a version that answers worse.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; progress: whether to show it, or what shows it.

    Raises:
        ConditioningError: the labels make the answers worse (``Comparison.worse``), without ``force``.
        DataError: rows that cannot be used; ConfigError: an artifact, or more rows, than conditioning covers.
        ArtifactError, ModelError: an artifact that cannot be loaded or written. What is there stays.
    """
    shown = shown_by(progress)
    target = Path(artifact if out is None else out)
    check_name(target)
    check_replaceable(target)
    if isinstance(rows, Sized):
        check_count(len(rows))  # before the model is loaded
    predictor = Predictor.load(Path(artifact), device=device, progress=shown.say)
    classifier = LoadedClassifier(predictor)
    examples = read_rows(rows, classifier, label_field, groups=groups)
    earlier = () if calibration is None else read_rows(calibration, classifier, label_field, "calibration row", groups)
    name = None if out is None else target.name
    version = make_version(predictor, examples, earlier, name=name, force=force, progress=shown)
    write_version(version, target)
    shown.say(str(version.found.comparison))
    return version.found.comparison


@dataclass(frozen=True)
class Version:
    """A version that learned from labels, ready to be written.

    Attributes:
        of: the artifact that it is made from; manifest: its own, the files not yet listed.
        found: what the labels change; golden: the content of its golden file.
    """

    of: Artifact
    manifest: Manifest
    found: NewLabels
    golden: dict[str, Any]


def make_version(
    loaded: Predictor,
    examples: Sequence[Example],
    calibration: Sequence[Example] = (),
    *,
    name: str | None = None,
    force: bool = False,
    run: Run = call,
    most_tokens: int | None = None,
    progress: Progress | None = None,
) -> Version:
    """Return the version of a loaded artifact that learned from labelled rows; arguments and errors as ``condition``.

    Args:
        name: of the new version; None: the artifact's.
        run: runs each pass through the model, a batch of rows or one golden answer in it.
        most_tokens: of such a batch, as of ``served_outputs``.
    """
    packaged = as_packaged(loaded)
    classifier = LoadedClassifier(packaged)
    found = condition_on(
        packaged, classifier, examples, calibration, run=run, most_tokens=most_tokens, progress=progress
    )
    if found.comparison.worse and not force:
        raise ConditioningError(
            f"the labels make the answers worse, by more than one standard error: {found.comparison}. Nothing has "
            "changed; check the labels, collect more, or force it"
        )
    manifest = describe_version(packaged.artifact.manifest, loaded.artifact, found, len(calibration), name)
    golden = {
        "tolerance": TOLERANCE[manifest.dtype],
        "variance_tolerance": VARIANCE_TOLERANCE[manifest.dtype],
        "source": read_golden(packaged.artifact.path).source,
        "answers": answers_of(packaged, found, manifest, run),
    }
    return Version(loaded.artifact, manifest, found, golden)


def write_version(version: Version, target: Path, check: Callable[[Path], object] = read_artifact) -> None:
    """Write a version into the place of ``target``.

    Args:
        check: of the whole folder, before it takes its place; what it raises leaves everything as it is.

    Raises:
        ArtifactWriteError: no room, or something that is no artifact in its place.
    """
    found = version.found
    with new_version(version.of, target) as folder:
        write_tensors(folder / SHIFT, *shift_tensors(shifts_of(found.conditioned)))
        write_tensors(folder / SCORES, score_tensors(found.scores))
        write_json(folder / REPORT, found.comparison.model_dump(mode="json"))
        write_json(folder / GOLDEN, version.golden)
        finish_version(folder, version.manifest)
        check(folder)


def as_packaged(loaded: Predictor) -> Predictor:
    """Return a loaded artifact as it was packaged; it shares the model.

    Raises:
        ArtifactCorruptError: what it keeps of that version cannot be read.
    """
    artifact = loaded.artifact
    if not is_conditioned(artifact.manifest):
        return loaded
    manifest, shifts = packaged_manifest(artifact), dict[Corrected, Shift]()
    if manifest.conditioned:
        directions = len(manifest.labels) - (manifest.likelihood == "categorical")
        width = state_width(loaded.adapted.model, loaded.adapted.readout)
        shifts = read_shifts(packaged_file(artifact.path, SHIFT), manifest.corrected, width, directions)
    before = Artifact(artifact.path, manifest, artifact.digest)
    adapted = replace(loaded.adapted, shifts=shifts)
    return Predictor(before, adapted, loaded.tokenizer, loaded.device, loaded.base, loaded.review_scores)


def describe_version(
    packaged: Manifest, artifact: Artifact, found: NewLabels, calibration: int, name: str | None
) -> Manifest:
    """Return the manifest of a new version, its files not yet listed; ``calibration``: such rows given with the new."""
    comparison, conditioned = found.comparison, found.conditioned
    earlier = calibration or max((one.rows for one in packaged.conditioned.values()), default=0)
    losses = {kind: one.loss for kind, one in conditioned.items()}
    return packaged.model_copy(
        update={
            "name": name or artifact.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "conditioned": {
                kind: conditioned_record(one, earlier + comparison.rows) for kind, one in conditioned.items()
            },
            **dict(found.calibrated),
            "metrics": summary(found.metrics),
            "data": packaged.data
            | {"labels": comparison.model_dump(mode="json") | {"loss": losses, "of": artifact.digest}},
            "versions": installed_versions(),
        }
    )


def predictor_of(packaged: Predictor, found: NewLabels, manifest: Manifest) -> Predictor:
    """Return what answers as the new version does; it shares the model."""
    adapted = replace(packaged.adapted, shifts=shifts_of(found.conditioned))
    scores = {str(name): one for name, one in found.scores.items()}
    artifact = replace(packaged.artifact, manifest=manifest)
    return Predictor(artifact, adapted, packaged.tokenizer, packaged.device, packaged.base, scores)


def answers_of(packaged: Predictor, found: NewLabels, manifest: Manifest, run: Run) -> list[dict[str, Any]]:
    """Return what the new version answers to the artifact's golden inputs, as a golden file records it."""
    predictor = predictor_of(packaged, found, manifest)

    def answer(row: Any) -> Prediction:
        return predictor.predict([row], also=predictor.predictives)[0]

    entries = []
    for recorded in read_golden(packaged.artifact.path).answers:
        row = predictor.encode(recorded.inputs, truncate=True)
        entries.append(golden_entry(recorded.inputs, run(partial(answer, row))))
    return entries
