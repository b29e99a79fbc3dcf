"""An artifact measured on a file of labelled rows, as POST /evaluate measures it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.commands.answering import How, answers, encode
from laplora.commands.console import needs, say
from laplora.errors import DataError, LaploraError

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor
    from laplora.prompts.examples import Example


@dataclass
class MeasureHow:
    """Bins of the ECE, and resamples and seed of the bootstrap."""

    bins: int = 15
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """Metrics by method, as POST /evaluate gives them, and the answers in the order of the rows."""

    methods: dict[str, dict[str, Any]]
    predictions: list[Prediction]
    truths: list[int | tuple[int, ...]]


def labelled_examples(data: Path, label_field: str, predictor: Predictor) -> Sequence[Example]:
    """Return a file's rows; DataError: rows that cannot be used, by line."""
    try:
        from training.data.examples import Task
        from training.data.files import read_examples
    except ImportError as error:
        raise needs("training", error) from None
    manifest = predictor.artifact.manifest
    task = Task(predictor.artifact.name, manifest.template.template(), tuple(manifest.labels))
    return read_examples(data, task, label_field, {}, several=manifest.likelihood == "bernoulli")


def measured_rows(predictor: Predictor, examples: Sequence[Example], how: How, measure_how: MeasureHow) -> Measured:
    """Return what rows say of an artifact.

    Raises:
        DataError: rows that cannot be answered, by line.
    """
    from service.scoring.evaluation import measure, method_rows
    from service.scoring.labels import LabelNames

    manifest, name = predictor.artifact.manifest, how.predictive or predictor.recommended
    questions, problems = [], []
    for example in examples:
        try:
            questions.append(encode(predictor, example.fields, how))
        except LaploraError as error:
            problems.append(f"{example.id}: {error}")
    if problems:
        more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError("\n".join(problems[:5]) + more)
    answered = answers(predictor, questions, how, _watched)
    rows = [method_rows(manifest, name, prediction, own_order) for prediction, own_order in answered]
    truths = [example.label if example.present is None else example.present for example in examples]
    methods = measure(rows, truths, names=LabelNames.of(manifest), how=measure_how)
    return Measured(methods, [prediction for prediction, _ in answered], truths)


def _watched(batches: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yield batches, and say about ten times how far it is."""
    step = max(1, -(-len(batches) // 10))
    for done, index in enumerate(batches, 1):
        yield index
        if done % step == 0 or done == len(batches):
            say(f"rows: batch {done} of {len(batches)}")
