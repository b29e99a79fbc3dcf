"""Shift: how a finished artifact does on rows that are not like those it was trained on.

Four kinds of set go through the artifact's template and every predictive it carries: the run's test rows, other data
sets (as in Yang et al., arXiv 2308.13111), texts that have no answer, and corruptions of the test rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from laplora.artifact.folder import Artifact, read_artifact
from laplora.artifact.manifest import Manifest
from laplora.data.labelled import Task
from laplora.errors import ConfigError, DataError, InvalidInputError
from laplora.files import write_json
from laplora.fitting.corruptions import corrupt
from laplora.fitting.store import rows_digest
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from training.config import DataConfig, RunConfig, ShiftConfig, StrangerConfig
from training.data.examples import Splits
from training.data.section import load_splits
from training.report.shift import set_record, shift_record, write_shift_report
from training.report.shift_answers import SetAnswers, answer_set, read_answers, write_answers
from training.workspace.base_size import configured_parameters
from training.workspace.class_weights import weighed
from training.workspace.filled_in import filled_in
from training.workspace.same_rows import check_same_rows
from training.workspace.selection import split_off
from training.workspace.terminal import say

SetKind = Literal["in_distribution", "shifted", "stranger", "corrupted"]
#: The name of the run's test rows.
TEST = "test"


@dataclass(frozen=True)
class ShiftSet:
    """Rows to measure on.

    Attributes:
        source: where they come from, in words.
        examples: of a stranger with the label -1.
        left_out: rows of the source that were not used, by the reason: ``choices`` (as many as the artifact cannot
            take) and ``repeated`` (the run's splits hold the same prompt).
    """

    name: str
    kind: SetKind
    source: str
    examples: tuple[Example, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def shift(config: RunConfig) -> Path:
    """Measure a finished artifact on the sets of the configuration's section ``shift``; return the report's folder.

    Every set's answers are kept: the same command continues, and another artifact or other rows are answered again.

    Raises:
        ConfigError: no section ``shift``, or an artifact of another configuration than this one.
        ArtifactError: no artifact, or one that cannot be used.
        DataError: a set that the artifact cannot answer.
    """
    settings = config.shift
    if settings is None:
        raise ConfigError(
            f"{config.name} has no section 'shift': name other data sets or corruptions there, as "
            "training/configs/shift-openbookqa-smollm2.yaml does"
        )
    splits = split_off(config, load_splits(config.data, seed=config.seed, hold_out=config.holds_out, progress=say))
    config = weighed(filled_in(config, len(splits.train), lambda: configured_parameters(config)), splits)
    artifact = read_artifact(config.artifact_dir)
    check_same_rows(config, artifact.manifest, splits)
    sets = shift_sets(config, settings, artifact.manifest, splits)
    answers = answer_sets(config, artifact, sets)
    records: dict[str, Any] = {}
    for one in sets:
        record = set_record(answers[one.name], answers[TEST] if one.name != TEST else None)
        records[one.name] = record | {"kind": one.kind, "source": one.source, "left_out": dict(one.left_out)}
        write_json(config.run_dir / "shift" / f"{one.name}.json", records[one.name])
    folder = config.run_dir / "report"
    write_shift_report(shift_record(config, artifact, records), folder)
    say(f"report: {folder / 'shift.md'}")
    return folder


def shift_sets(config: RunConfig, settings: ShiftConfig, manifest: Manifest, splits: Splits) -> list[ShiftSet]:
    """Return every set with its rows, the run's test rows first; DataError names the section of one that cannot be."""
    task, seed, rows = Task(manifest.name, manifest.template.template(), manifest.labels), config.seed, settings.rows
    sets = [ShiftSet(TEST, "in_distribution", splits.report["source_detail"], splits.test)]
    known = {
        task.question(e) for part in (splits.train, splits.selection, splits.calibration, splits.test) for e in part
    }
    for name, data in settings.sets.items():
        try:
            sets.append(shifted_set(name, data, seed, rows, task, known))
        except DataError as error:
            raise DataError(f"shift.sets.{name}: {error}") from None
    for name, stranger in settings.strangers.items():
        try:
            sets.append(stranger_set(name, stranger, seed, rows, task))
        except DataError as error:
            raise DataError(f"shift.strangers.{name}: {error}") from None
    for corruption in settings.corruptions:
        examples = tuple(corrupt(e, corruption.kind, corruption.severity, seed) for e in splits.test[:rows])
        source = f"the first {len(examples)} test rows, {corruption.kind} at {corruption.severity:g}"
        sets.append(ShiftSet(corruption.name, "corrupted", source, examples))
    return sets


def shifted_set(name: str, data: DataConfig, seed: int, limit: int, task: Task, known: set[str]) -> ShiftSet:
    """Return the rows of another data set that the artifact can answer, at most ``limit``.

    The test split is shuffled by the seed, so its first usable rows are a random draw. DataError: rows with other
    fields or other labels than the artifact's ``task``, or fewer than two that the run does not know.
    """
    splits, template = load_splits(data, seed=seed), task.template
    if not template.takes_choices and splits.task.labels != task.labels:
        raise DataError(f"its labels are {list(splits.task.labels)}, the artifact answers {list(task.labels)}")
    usable: list[Example] = []
    left_out = {"choices": 0, "repeated": 0}
    for example in splits.test:
        if set(example.fields) != set(template.fields):
            raise DataError(
                f"its rows have the fields {sorted(example.fields)}, the artifact's template {template.name!r} takes "
                f"{sorted(template.fields)}"
            )
        try:
            question = task.question(example)
        except InvalidInputError as error:
            if error.field != "choices":
                raise DataError(f"row {example.id}: {error}") from None
            left_out["choices"] += 1
            continue
        if question in known:
            left_out["repeated"] += 1
        else:
            usable.append(example)
    if len(usable) < 2:
        raise DataError(
            f"{len(usable)} of its {len(splits.test)} test rows can be used ({left_out['choices']} have a number of "
            f"choices that the artifact cannot take, {left_out['repeated']} are among the run's rows): two are needed"
        )
    return ShiftSet(name, "shifted", splits.report["source_detail"], tuple(usable[:limit]), left_out)


def stranger_set(name: str, stranger: StrangerConfig, seed: int, limit: int, task: Task) -> ShiftSet:
    """Return the texts of another data set, at most ``limit``, each once; DataError where the artifact takes none."""
    splits, template = load_splits(stranger.data, seed=seed), task.template
    if len(template.fields) != 1 or template.takes_choices:
        raise DataError(f"the artifact's template has the fields {sorted(template.fields)}: texts need one")
    (field_name,) = template.fields
    if stranger.field == "choices" or stranger.field not in splits.task.template.fields:
        raise DataError(f"its rows have the fields {sorted(splits.task.template.fields)}, no text {stranger.field!r}")
    texts = list(dict.fromkeys(example.fields[stranger.field] for example in splits.test))[:limit]
    if len(texts) < 2:
        raise DataError(f"{len(texts)} different texts in its test split: two are needed")
    examples = tuple(Example(f"{name}-{i}", {field_name: text}, -1, len(task.labels)) for i, text in enumerate(texts))
    return ShiftSet(name, "stranger", f"{splits.report['source_detail']}, field {stranger.field}", examples)


def answer_sets(config: RunConfig, artifact: Artifact, sets: list[ShiftSet]) -> dict[str, SetAnswers]:
    """Return the artifact's answers to every set, from files where they are there; the model loads only if it must."""
    folder = config.run_dir / "shift"
    digests = {one.name: f"{artifact.digest}/{rows_digest(one.examples)}" for one in sets}
    kept = {one.name: read_answers(folder / f"{one.name}.safetensors", digests[one.name]) for one in sets}
    answers = {name: known for name, known in kept.items() if known is not None}
    todo = [one for one in sets if one.name not in answers]
    if not todo:
        say(f"the answers to all {len(sets)} sets are there")
        return answers
    predictor = Predictor.load(
        config.artifact_dir,
        device=config.base.spread or config.base.device,
        dequantize=config.base.dequantize,
        progress=say,
    )
    started, done, total = time.monotonic(), 0, sum(len(one.examples) for one in todo)
    for number, one in enumerate(todo, 1):
        title = f"{one.name} ({number}/{len(todo)})"
        answers[one.name] = answer_set(predictor, one.examples, config.laplace.batch_size, title)
        write_answers(folder / f"{one.name}.safetensors", answers[one.name], digests[one.name])
        done += len(one.examples)
        left = (time.monotonic() - started) / done * (total - done)
        say(f"{done} of {total} rows answered, about {left / 60:.0f} minutes left")
    return answers
