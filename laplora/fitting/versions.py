"""Versions of an artifact that learned labels which came after it was packaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

from laplora.answers.comparison import Comparison, check_better
from laplora.answers.golden import golden_entry, read_golden
from laplora.answers.prediction import Prediction
from laplora.answers.review_scores import read_scores, score_tensors
from laplora.artifact.describing import installed_versions, summary
from laplora.artifact.folder import Artifact, check_name, check_replaceable, read_artifact
from laplora.artifact.head_files import expert_tensors, read_experts, read_kept_rows
from laplora.artifact.manifest import EXPERTS, GOLDEN, ROWS, SCORES, Manifest
from laplora.artifact.packaged import (
    REPORT,
    finish_version,
    is_conditioned,
    new_version,
    packaged_file,
    packaged_manifest,
)
from laplora.errors import ConfigError
from laplora.files import write_json, write_tensors
from laplora.fitting.learning import Learned, LoadedClassifier, Run, check_count, learn
from laplora.fitting.rows import read_rows
from laplora.fitting.saving import TOLERANCE, VARIANCE_TOLERANCE
from laplora.predictor import Predictor
from laplora.progress import Progress, shown_by
from laplora.prompts.examples import Example


def condition(
    artifact: str | Path,
    rows: Any,
    *,
    out: str | Path | None = None,
    label_field: str = "label",
    groups: str | None = None,
    force: bool = False,
    device: str = "auto",
    progress: bool | Progress = True,
) -> Comparison:
    """Write the version of an artifact that learned further labels, without training, and return what they change.

    The new version is the artifact as it was packaged with all rows that are given: not on top of an earlier call's.
    So rows that came before are given again, and one that is left out is forgotten.

    Args:
        artifact: its folder.
        rows: labelled rows, 20 or more: dicts with the template's fields and a label, in a list or an
            iterator; a data frame; a ``datasets.Dataset``. None of them may have trained or calibrated the artifact.
        out: folder of the new version; None: in the place of the artifact, which ``restore_packaged`` undoes.
        label_field, groups: as of ``laplora.fit``.
        force: whether to write a version that answers worse.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; progress: whether to show it, or what shows it.

    Raises:
        ConditioningError: the labels make the answers worse (``Comparison.worse``), without ``force``.
        DataError: rows that cannot be used; ConfigError: an artifact that keeps no rows or has no head, or too many
            rows.
        ArtifactError, ModelError: an artifact that cannot be loaded or written. What is there stays.
    """
    shown = shown_by(progress)
    target = Path(artifact if out is None else out)
    check_name(target)
    check_replaceable(target)
    if isinstance(rows, Sized):
        check_count(len(rows))  # before the model is loaded
    predictor = Predictor.load(Path(artifact), device=device, progress=shown.say)
    examples = read_rows(rows, LoadedClassifier(predictor), label_field, groups=groups)
    name = None if out is None else target.name
    version = make_version(predictor, examples, name=name, force=force, progress=shown)
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
    found: Learned
    golden: dict[str, Any]


def make_version(
    loaded: Predictor,
    examples: Sequence[Example],
    *,
    name: str | None = None,
    force: bool = False,
    run: Run = call,
    most_tokens: int | None = None,
    progress: Progress | None = None,
) -> Version:
    """Return the version of a loaded artifact that learned labelled rows; arguments and errors as ``condition``.

    Args:
        name: of the new version; None: the artifact's.
        run: runs each pass through the model, a batch of rows or one golden answer in it.
        most_tokens: of such a batch, as of ``laplora.fitting.learning.learn``.
    """
    packaged = as_packaged(loaded)
    manifest, folder = packaged.artifact.manifest, packaged.artifact.path
    if ROWS not in manifest.files:
        raise ConfigError(
            f"artifact {loaded.artifact.name!r} keeps no labelled rows ({ROWS}), without which its heads learn no "
            "more: fit all labels anew, with experts.keep_rows on"
        )
    kept = read_kept_rows(folder / ROWS, manifest, packaged.experts)
    found = learn(packaged, kept, examples, run=run, most_tokens=most_tokens, progress=progress)
    check_better(found.comparison, force=force)
    manifest = describe_version(manifest, loaded.artifact, found, name)
    golden = {
        "tolerance": TOLERANCE[manifest.dtype],
        "variance_tolerance": VARIANCE_TOLERANCE[manifest.dtype],
        "source": read_golden(folder).source,
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
        write_tensors(folder / EXPERTS, expert_tensors(found.experts.heads, found.experts.familiar))
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
    manifest = packaged_manifest(artifact)
    experts = read_experts(packaged_file(artifact.path, EXPERTS), manifest)
    scores = read_scores(packaged_file(artifact.path, SCORES), manifest.servable, manifest.calibration.rows)
    return loaded.as_version(replace(artifact, manifest=manifest), experts, scores)


def describe_version(packaged: Manifest, artifact: Artifact, found: Learned, name: str | None) -> Manifest:
    """Return the manifest of a new version, its files not yet listed."""
    figures = found.comparison.model_dump(mode="json")
    return packaged.model_copy(
        update={
            "name": name or artifact.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **found.fields(packaged),
            "metrics": summary(found.metrics),
            "data": packaged.data | {"labels": figures | {"of": artifact.digest}},
            "versions": installed_versions(),
        }
    )


def predictor_of(packaged: Predictor, found: Learned, manifest: Manifest) -> Predictor:
    """Return what answers as the new version does; it shares the model."""
    return packaged.as_version(replace(packaged.artifact, manifest=manifest), found.experts, found.scores)


def answers_of(packaged: Predictor, found: Learned, manifest: Manifest, run: Run) -> list[dict[str, Any]]:
    """Return what the new version answers to the artifact's golden inputs, as a golden file records it."""
    predictor = predictor_of(packaged, found, manifest)

    def answer(row: Any) -> Prediction:
        return predictor.predict([row], also=predictor.predictives)[0]

    entries = []
    for recorded in read_golden(packaged.artifact.path).answers:
        row = predictor.encode(recorded.inputs, truncate=True)
        entries.append(golden_entry(recorded.inputs, run(partial(answer, row))))
    return entries
