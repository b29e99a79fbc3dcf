"""Shift: how a finished artifact does on rows that are not like those it was trained on.

Four kinds of set go through the artifact's template and every predictive it carries: the run's test rows, other data
sets (as in Yang et al., arXiv 2308.13111), texts that have no answer, and corruptions of the test rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from laplora.artifact.describing import installed_versions
from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import Manifest
from laplora.classifier import batches
from laplora.data.labelled import Task
from laplora.errors import ConfigError, DataError, InvalidInputError
from laplora.features.store import rows_digest
from laplora.predictor import Predictor
from laplora.prompts.examples import Example
from training.config import DataConfig, OutsideConfig, RunConfig, ShiftConfig
from training.data.corruptions import corrupt
from training.data.examples import Splits
from training.data.section import load_splits
from training.report.shift import Answers, set_record, write_shift_report
from training.workspace.base_size import configured_parameters
from training.workspace.class_weights import weighed
from training.workspace.filled_in import filled_in
from training.workspace.same_rows import check_same_rows
from training.workspace.selection import split_off
from training.workspace.stores import FolderStore
from training.workspace.terminal import progress, say


@dataclass(frozen=True)
class ShiftSet:
    """Rows to measure on.

    Attributes:
        source: where they come from, in words; examples: of an outside text with the label -1.
        left_out: rows of the source that were not used, by the reason: ``choices`` (as many as the artifact cannot
            take) and ``repeated`` (the run's splits hold the same prompt).
    """

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
    recommended = artifact.manifest.recommended.predictive
    record: dict[str, Any] = {"name": config.name, "artifact": artifact.digest, "seed": config.seed}
    record |= {"recommended": recommended, "versions": installed_versions(), "sets": {}}
    inside: Answers | None = None  # those to the run's test rows, which come first
    predictor: Predictor | None = None
    for name, one in shift_sets(config, settings, artifact.manifest, splits).items():
        store = FolderStore(config.run_dir / "shift", f"{artifact.digest}/{rows_digest(one.examples)}")
        stored = store.read(name)
        if stored is None:
            device, dequantize = config.base.spread or config.base.device, config.base.dequantize
            predictor = predictor or Predictor.load(artifact.path, device=device, dequantize=dequantize, progress=say)
            stored = answer_set(predictor, one.examples, config.laplace.batch_size, name), {}
            store.write(name, *stored)
        figures = set_record(stored[0], inside, recommended)
        record["sets"][name] = {"source": one.source, "left_out": dict(one.left_out)} | figures
        inside = inside or stored[0]
    folder = config.run_dir / "report"
    write_shift_report(record, folder)
    say(f"report: {folder / 'shift.md'}")
    return folder


def shift_sets(config: RunConfig, settings: ShiftConfig, manifest: Manifest, splits: Splits) -> dict[str, ShiftSet]:
    """Return every set by name, ``test`` (the run's test rows) first; DataError names one that cannot be."""
    task, rows = Task(manifest.name, manifest.template.template(), manifest.labels), settings.rows
    sets = {"test": ShiftSet(splits.report["source_detail"], splits.test)}
    parts = (splits.train, splits.selection, splits.calibration, splits.test)
    known = {task.question(example) for part in parts for example in part}
    for name, data in settings.sets.items():
        sets[name] = shifted_set(name, data, config.seed, rows, task, known)
    for name, outside in settings.out_of_distribution.items():
        sets[name] = outside_set(name, outside, config.seed, rows, task)
    for way in settings.corruptions:
        examples = tuple(corrupt(e, way.kind, way.severity, config.seed) for e in splits.test[:rows])
        sets[way.name] = ShiftSet(f"the first {len(examples)} test rows, {way.kind} at {way.severity:g}", examples)
    return sets


def shifted_set(name: str, data: DataConfig, seed: int, limit: int, task: Task, known: set[str]) -> ShiftSet:
    """Return the rows of another data set that the artifact can answer, at most ``limit``.

    The test split is shuffled by the seed, so its first usable rows are a random draw. DataError: rows with other
    fields or other labels than the artifact's ``task``, or fewer than two that the run does not know.
    """
    splits = load_splits(data, seed=seed)
    fields, wanted = sorted(splits.task.template.fields), sorted(task.template.fields)
    labels, answered = list(splits.task.labels), list(task.labels)
    if fields != wanted or (labels != answered and not task.template.takes_choices):
        there = f"its rows have the fields {fields} and the labels {labels}"
        raise DataError(f"shift: {name}: {there}, the artifact takes {wanted} and answers {answered}")
    usable: list[Example] = []
    left_out = {"choices": 0, "repeated": 0}
    for example in splits.test:
        try:
            question = task.question(example)
        except InvalidInputError as error:
            if error.field != "choices":
                raise
            left_out["choices"] += 1
        else:
            if question in known:
                left_out["repeated"] += 1
            else:
                usable.append(example)
    if len(usable) < 2:
        raise DataError(
            f"shift: {name}: of its {len(splits.test)} test rows two can be used at least, got {len(usable)}: "
            f"{left_out['choices']} have too few or many choices, {left_out['repeated']} are among the run's rows"
        )
    return ShiftSet(splits.report["source_detail"], tuple(usable[:limit]), left_out)


def outside_set(name: str, outside: OutsideConfig, seed: int, limit: int, task: Task) -> ShiftSet:
    """Return the texts of another data set, at most ``limit``, each once; DataError where the artifact takes none."""
    splits, wanted = load_splits(outside.data, seed=seed), sorted(task.template.fields)
    there = sorted({*splits.task.template.fields} - {"choices"})
    if len(wanted) != 1 or task.template.takes_choices or outside.field not in there:
        raise DataError(
            f"shift: {name}: its texts are {there}, asked for is {outside.field!r}, in the place of the only field of "
            f"the artifact's template, which has {wanted}"
        )
    texts = list(dict.fromkeys(example.fields[outside.field] for example in splits.test))[:limit]
    examples = tuple(Example(f"{name}-{i}", {wanted[0]: text}, -1, len(task.labels)) for i, text in enumerate(texts))
    return ShiftSet(f"{splits.report['source_detail']}, field {outside.field}", examples)


def answer_set(
    predictor: Predictor, examples: Sequence[Example], batch_size: int, name: str
) -> dict[str, torch.Tensor]:
    """Return the answers to every row, in the rows' order, as ``training.report.shift`` describes them."""
    rows = [predictor.encode(example.fields, truncate=True) for example in examples]
    size, names = (len(rows), predictor.class_count), predictor.predictives
    found = {f"probs.{predictive}": torch.zeros(size, dtype=torch.float64) for predictive in names}
    found |= {key: torch.zeros(len(rows), dtype=torch.bool) for key in ("accepted", "unfamiliar")}
    if predictor.artifact.manifest.familiarity is not None:
        found["familiarity"] = torch.zeros(len(rows), dtype=torch.float64)
    for index in progress(batches(rows, batch_size), name):
        predictions = predictor.predict_each([rows[i] for i in index])
        for predictive, answers in predictions.items():
            for i, answer in zip(index, answers, strict=True):
                found[f"probs.{predictive}"][i, : len(answer.labels)] = torch.tensor(answer.arrays.probs)
        for i, answer in zip(index, predictions[predictor.recommended], strict=True):
            found["accepted"][i], found["unfamiliar"][i] = answer.decision != "review", "unfamiliar" in answer.flags
            if answer.familiarity is not None:
                found["familiarity"][i] = answer.familiarity
    return {**found, "labels": torch.tensor([example.label for example in examples])}
