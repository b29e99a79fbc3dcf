"""``laplora.load``: an artifact in memory, with the calls of what ``laplora.fit`` returned, and versions of it.

A version learned labels that came after its artifact was packaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import call
from pathlib import Path
from typing import Any, NamedTuple

from laplora.answers.comparison import Comparison, check_better
from laplora.answers.golden import golden_entry, read_golden, what_leaves
from laplora.answers.golden_inputs import GoldenInputs
from laplora.answers.review_scores import read_scores, score_tensors
from laplora.artifact.describing import installed_versions, summary
from laplora.artifact.folder import Artifact, check_name, check_replaceable, read_artifact
from laplora.artifact.head_files import expert_tensors, read_experts, read_kept_rows, row_tensors
from laplora.artifact.label_changes import LabelChanges, Relabelling, history_of
from laplora.artifact.manifest import EXPERTS, GOLDEN, ROWS, SCORES, Manifest
from laplora.artifact.packaged import (
    REPORT,
    copy_artifact,
    finish_version,
    is_conditioned,
    new_version,
    packaged_file,
    packaged_manifest,
)
from laplora.artifact.report_page import REPORT_PAGE
from laplora.errors import ConditioningError, ConfigError, warn
from laplora.execution.progress import Progress, Silent, shown_by
from laplora.files.atomic import write_json, write_tensors, write_whole
from laplora.fitting.calibrated import ONE_AT_A_TIME, CalibratedPosterior
from laplora.fitting.fit import Fit
from laplora.fitting.learning import Learned, LoadedClassifier, Run, check_count, learn
from laplora.fitting.relabelling import relabelled
from laplora.fitting.rows import read_rows
from laplora.fitting.saving import TOLERANCE, VARIANCE_TOLERANCE, loaded_answers
from laplora.predictor import Predictor
from laplora.prompts.examples import Example


def load(path: str | Path, *, device: str = "auto", progress: bool | Progress = True) -> CalibratedPosterior:
    """Return an artifact as ``laplora.fit`` returned it: the same calls, but for ``fit``, which no artifact has.

    Args:
        path: its folder, or an address, as of ``Predictor.load``; so are errors.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; progress: whether to show it, or what shows it.
    """
    shown = shown_by(progress)
    return LoadedPosterior(Predictor.load(path, device=device, progress=shown.say), shown)


class LoadedPosterior(CalibratedPosterior):
    """A posterior from an artifact, and from labels that came after it was loaded."""

    def __init__(self, loaded: Predictor, progress: Progress, version: Version | None = None) -> None:
        """Take what was loaded; ``version``: what later labels made of it."""
        self._loaded, self._version, self._progress = loaded, version, progress
        self._measured = None
        self.classifier = LoadedClassifier(loaded)
        self._serve(loaded if version is None else predictor_of(as_packaged(loaded), version.learned, version.manifest))
        self.data = dict(self.predictor.artifact.manifest.data)

    def __repr__(self) -> str:
        later = f", {self._version.learned.comparison.rows} later labels" if self._version else ""
        return f"CalibratedPosterior(of {self.predictor.artifact.name!r}{later}, answers by {self.recommended})"

    @property
    def fit(self) -> Fit:  # type: ignore[override]
        """Raise AttributeError: an artifact holds no calibration rows."""
        raise AttributeError("a loaded posterior has no fit: an artifact holds what was fitted, and not its rows")

    def condition(
        self,
        rows: Any,
        label_field: str = "label",
        *,
        groups: str | None = None,
        force: bool = False,
    ) -> CalibratedPosterior:
        """Return the posterior that learned from further labels, as of ``CalibratedPosterior.condition``.

        It begins at the artifact as it was packaged; ``save`` writes the version that ``laplora.condition`` does.
        """
        self._check_model()
        examples = read_rows(rows, self.classifier, label_field, groups=groups)
        with ONE_AT_A_TIME:
            version = make_version(self._loaded, Given(examples, force=force), progress=self._progress)
        self._progress.say(str(version.learned.comparison))
        return LoadedPosterior(self._loaded, self._progress, version)

    def save(
        self,
        path: str | Path,
        *,
        base: str | None = None,
        revision: str | None = None,
        verify: bool = True,
        report: str | None = None,
        golden_inputs: GoldenInputs = None,
    ) -> Path:
        """Write the artifact, with what ``condition`` and ``evaluate`` made new, as of ``CalibratedPosterior.save``.

        Base model and golden inputs are those of the artifact. ``verify`` loads what later labels changed, and replays
        its answers.
        """
        if (base, revision, golden_inputs) != (None, None, None):
            raise ConfigError(
                "a loaded posterior keeps base model and golden inputs of its artifact: leave out base, revision and "
                "golden_inputs"
            )
        manifest = self.predictor.artifact.manifest
        if report is not None and (self._version is not None or is_conditioned(manifest)):
            raise ConfigError("what later labels conditioned keeps the report that it was packaged with: leave it out")
        self._check_model()
        target, device = Path(path), self.classifier.place
        check_name(target)
        check_replaceable(target)
        metrics = summary(self._measured.to_json()) if self._measured else manifest.metrics
        manifest = manifest.model_copy(update={"name": target.name, "metrics": metrics})

        def check(folder: Path) -> None:
            if verify:
                Predictor.load(folder, device=device, progress=self._progress.say)

        if self._version is None:
            copy_artifact(self._loaded.artifact, target, manifest, report)
        else:
            with ONE_AT_A_TIME:
                write_version(replace(self._version, manifest=manifest), target, check)
        self._progress.say(f"artifact: {target}: {what_leaves(target)}")
        return target


def condition(
    artifact: str | Path,
    rows: Any = (),
    *,
    changes: LabelChanges | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    label_field: str = "label",
    groups: str | None = None,
    force: bool = False,
    device: str = "auto",
    progress: bool | Progress = True,
) -> Comparison:
    """Write the version of an artifact that learned further labels, without training, and return what they change.

    The new version is the artifact as it was packaged with all rows that are given: not on top of an earlier call's.
    So rows that came before are given again, and one that is left out is forgotten. With ``changes`` of its labels, and
    from then on, heads are fitted anew, and rows stay: a copy of an earlier one takes its place.

    Args:
        artifact: its folder.
        rows: labelled rows, 20 or more: dicts with the template's fields and a label, in a list or an
            iterator; a data frame; a ``datasets.Dataset``. None of them may have trained or calibrated the artifact.
            With ``changes`` 5 or more of each label that is added or part of a split, under the labels after, of which
            near-copies count once. Without changes name these by ``groups``, lest folds part them.
        changes: ``rename``, ``merge``, ``split`` and ``add`` of the labels, in one step (``LabelChanges``).
        out: folder of the new version; None: in the place of the artifact, which ``restore_packaged`` undoes.
        label_field, groups: as of ``laplora.fit``.
        force: whether to write a version that answers worse.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; progress: whether to show it, or what shows it.

    Raises:
        ConditioningError: the labels make the answers worse (``Comparison.worse``), without ``force``.
        DataError: rows that cannot be used; ConfigError: an artifact that keeps no rows or has no head, or too many
            rows.
        ArtifactError, ModelError: an artifact that cannot be loaded or written. The old content stays.
    """
    shown = shown_by(progress)
    target = Path(artifact if out is None else out)
    check_name(target)
    check_replaceable(target)
    if isinstance(rows, Sized) and changes is None:
        check_count(len(rows))  # before the model is loaded
    predictor = Predictor.load(Path(artifact), device=device, progress=shown.say)
    own, given = predictor.artifact.manifest, None if changes is None else LabelChanges.read(changes)
    to = None if given is None else Relabelling.of(given, own.labels, own.calibration.ordered)
    classifier, none = LoadedClassifier(predictor, to.after if to else None), isinstance(rows, Sized) and not len(rows)
    examples = () if to and none else read_rows(rows, classifier, label_field, groups=groups)
    name = None if out is None else target.name
    version = make_version(predictor, Given(examples, to, force), name=name, progress=shown)
    write_version(version, target)
    shown.say(str(version.learned.comparison))
    return version.learned.comparison


class Given(NamedTuple):
    """Labelled rows; the labels that these and the version are to have, or None; and whether it may answer worse."""

    examples: Sequence[Example]
    to: Relabelling | None = None
    force: bool = False


@dataclass(frozen=True)
class Version:
    """A version that learned from labels, ready to be written.

    Attributes:
        of: the artifact that it is made from; manifest: its own, the files not yet listed.
        learned: the changes by the labels; golden: the content of its golden file.
    """

    of: Artifact
    manifest: Manifest
    learned: Learned
    golden: dict[str, Any]


def make_version(
    loaded: Predictor,
    given: Given,
    *,
    name: str | None = None,
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
    examples, to, own, allowed = given.examples, given.to, loaded.artifact.manifest, -math.inf
    if to is None and history_of(own):
        to = Relabelling.of(LabelChanges(), own.labels)
    elif to is not None and "labels" in own.data and not history_of(own):
        lost = (
            f"rows that {loaded.artifact.name!r} learned later are forgotten with the change, but for those given again"
        )
        if not given.force:
            raise ConditioningError(f"{lost}. Nothing has changed; give them again, and force it")
        warn(lost)
    if to is not None and not examples and to.changes == LabelChanges():
        raise ConfigError("there are neither changes nor rows")
    packaged = as_packaged(loaded)
    manifest, folder = packaged.artifact.manifest, packaged.artifact.path
    if ROWS not in manifest.files:
        raise ConfigError(
            f"artifact {loaded.artifact.name!r} keeps no labelled rows ({ROWS}), without which its heads learn no "
            "more: fit all labels anew, with experts.keep_rows on"
        )
    kept = read_kept_rows(folder / ROWS, manifest, packaged.experts)
    how: Any = {"run": run, "most_tokens": most_tokens, "progress": progress or Silent()}
    if to is None:
        learned = learn(packaged, kept, examples, **how)
    else:
        learned, at = relabelled(packaged, kept, to, examples, **how), datetime.now(UTC).isoformat(timespec="seconds")
        manifest = to.manifest(manifest, at=at, of=loaded.artifact.digest, rows=len(examples))
        share = sum(to.after[one.label] in to.changes.add for one in examples) / len(learned.kept.labelled)
        allowed = -math.log1p(-share) if examples else math.inf  # what new labels cost if nothing tells them apart
    check_better(learned.comparison, force=given.force, allowed=allowed)
    manifest = describe_version(manifest, loaded.artifact, learned, name)
    recorded = read_golden(folder)
    inputs = [one.inputs for one in recorded.answers]
    answers = loaded_answers(predictor_of(packaged, learned, manifest), run)(inputs)
    golden = {
        "tolerance": TOLERANCE[manifest.dtype],
        "variance_tolerance": VARIANCE_TOLERANCE[manifest.dtype],
        "source": recorded.source,
        "answers": [golden_entry(*one) for one in zip(inputs, answers, strict=True)],
    }
    return Version(loaded.artifact, manifest, learned, golden)


def write_version(version: Version, target: Path, check: Callable[[Path], object] = read_artifact) -> None:
    """Write a version into the place of ``target``.

    Args:
        check: of the whole folder, before it takes its place; what it raises leaves everything as it is.

    Raises:
        ArtifactWriteError: no room, or something that is no artifact in its place.
    """
    learned = version.learned
    with new_version(version.of, target, relabelled=bool(learned.page)) as folder:
        write_tensors(folder / EXPERTS, expert_tensors(learned.experts.heads, learned.experts.familiar))
        write_tensors(folder / SCORES, score_tensors(learned.scores))
        write_json(folder / REPORT, learned.comparison.model_dump(mode="json"))
        write_json(folder / GOLDEN, version.golden)
        if learned.page:
            write_tensors(folder / ROWS, row_tensors(learned.kept))
            write_whole(folder / REPORT_PAGE, learned.page)
        finish_version(folder, version.manifest)
        check(folder)


def as_packaged(loaded: Predictor) -> Predictor:
    """Return a loaded artifact as it was packaged, or as it is if its labels changed; it shares the model.

    Raises:
        ArtifactCorruptError: what it keeps of that version cannot be read.
    """
    artifact = loaded.artifact
    if not is_conditioned(artifact.manifest) or history_of(artifact.manifest):
        return loaded
    manifest = packaged_manifest(artifact)
    experts = read_experts(packaged_file(artifact.path, EXPERTS), manifest)
    scores = read_scores(packaged_file(artifact.path, SCORES), manifest.servable, manifest.calibration.rows)
    return loaded.as_version(replace(artifact, manifest=manifest), experts, scores)


def describe_version(packaged: Manifest, artifact: Artifact, learned: Learned, name: str | None) -> Manifest:
    """Return the manifest of a new version, its files not yet listed."""
    figures = learned.comparison.model_dump(mode="json")
    return packaged.model_copy(
        update={
            "name": name or artifact.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **learned.fields(packaged),
            "metrics": summary(learned.metrics),
            "data": packaged.data | {"labels": figures | {"of": artifact.digest}},
            "versions": installed_versions(),
        }
    )


def predictor_of(packaged: Predictor, learned: Learned, manifest: Manifest) -> Predictor:
    """Return what answers as the new version does; it shares the model."""
    return packaged.as_version(replace(packaged.artifact, manifest=manifest), learned.experts, learned.scores)
