"""Figures of a file of labelled rows, whoever answers: workers give each row's numbers, and one process measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from laplora.answers.evaluation import MeasureHow, accepted_rows, decided_for, measure_file, method_rows
from laplora.answers.labels import LabelNames
from laplora.answers.written import written_answer
from laplora.bulk.answering import WINDOW, How, answer_all, load, read
from laplora.bulk.parts import Line, Parts
from laplora.bulk.rows import Source
from laplora.bulk.workers import Workers, finish
from laplora.data.lines import Row, json_row
from laplora.data.records import Record, RowError, each_in_turn
from laplora.errors import DataError, LaploraError

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.artifact.folder import Artifact
    from laplora.predictor import Predictor
    from laplora.prompts.examples import Example


@dataclass(frozen=True)
class Evaluated:
    """An artifact's metrics on labelled rows.

    Attributes:
        answering: name of the method that answers.
        methods, accepted: metrics by method, and how many rows need no person, as ``POST /evaluate`` gives them.
        records: of each row its number, ``truth``, ``decision``, and if asked for its ``fields`` and ``answer``.
    """

    artifact: Artifact
    answering: str
    methods: dict[str, dict[str, Any]]
    accepted: dict[str, Any]
    records: list[dict[str, Any]]


def evaluate_file(
    artifact: str | Path,
    source: str | Path,
    how: How = How(),  # noqa: B008  is frozen
    workers: Workers = Workers(),  # noqa: B008
    measure: MeasureHow = MeasureHow(),  # noqa: B008
    *,
    parts: str | Path | None = None,
    label_field: str = "label",
    text_field: str = "text",
    with_answers: bool = False,
    allowed_bases: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Evaluated:
    """Return the metrics of an artifact on a file of labelled rows; the same figures however many work.

    The rows are read through once before any is answered: all of them have to be usable. The numbers of all rows are in
    memory when they are measured.

    Args:
        artifact, source, allowed_bases, progress: as of ``laplora.bulk.predict.predict_file``, and so are errors but
            for those below.
        parts: folder for the finished blocks; the same call goes on from them, and they go in the end. None: nowhere.
        label_field: field of a row that has its label, or its list of labels; text_field: that has the template's text.
        with_answers: whether each row's fields and answer are returned too.

    Raises:
        DataError: rows that cannot be used or answered, by number.
    """
    loaded, rows = read(artifact, how, allowed_bases, progress), Source.at(source, WINDOW)
    job = EvaluateJob(loaded, workers.worker_device, how, str(source), label_field, text_field, with_answers)
    every = (row for block in rows.blocks() for window in rows.windows(block) for row in window)
    if not sum(1 for _ in job.examples(every)):
        raise DataError(f"{source}: holds no rows")
    with ExitStack() as stack:
        kept = Parts(Path(stack.enter_context(TemporaryDirectory()) if parts is None else parts))
        stack.enter_context(kept.held())
        columns = {"label_field": label_field, "text_field": text_field}
        options = {"command": "evaluate", **how.recorded, **columns, "with_answers": with_answers}
        blocks = finish(job.start, rows, kept, workers, loaded, options, progress)
        records = [json.loads(line) for line in kept.lines(blocks)]
        numbers = [record.pop("methods") for record in records]
        truths, manifest = [record["truth"] for record in records], loaded.manifest
        methods = measure_file(manifest, numbers, truths, measure)
        kept.remove()
    name = next((one for one in manifest.servable if one == how.predictive), manifest.recommended.predictive)
    answers = [(record["decision"], row[name][0]) for record, row in zip(records, numbers, strict=True)]
    decided = decided_for(manifest, name, how.wanted)
    found = accepted_rows(answers, truths, LabelNames.of(manifest), decided.get("costs"))
    if costs := decided.pop("costs", None):
        decided = {"costs": costs.model_dump()}
    accepted = {"predictive": name, **decided, **found}
    return Evaluated(loaded, name, methods, accepted, records)


@dataclass(frozen=True)
class EvaluateJob:
    """Each row's numbers by an artifact.

    Attributes:
        place: what errors call the source; label_field, text_field: of a row.
        with_answers: whether each row's fields and answer come too.
    """

    artifact: Artifact
    device: str
    how: How
    place: str
    label_field: str
    text_field: str = "text"
    with_answers: bool = False

    def start(self) -> Callable[[Sequence[Row]], Iterator[Line]]:
        return partial(self.measure_window, load(self.artifact, self.device))

    def examples(self, rows: Iterable[Row]) -> Iterator[Example]:
        """Yield rows as examples, in order; DataError: after them, the first that cannot be used."""
        from laplora.data.labelled import Task, labelled_example

        manifest = self.artifact.manifest
        task = Task(self.artifact.name, manifest.template.template(), manifest.labels)
        several = manifest.likelihood == "bernoulli"

        def example(row: Row) -> Example:
            values = json_row(row)
            record = Record(row[0], values | {"text": values[self.text_field]} if self.text_field in values else values)
            return labelled_example(self.place, record, task, self.label_field, {}, several=several)

        return each_in_turn(self.place, rows, example)

    def measure_window(self, predictor: Predictor, window: Sequence[Row]) -> Iterator[Line]:
        """Yield a line for each row, in order: the place of the right label, or places, and its numbers by method.

        Raises:
            DataError: after them, rows that cannot be answered, by number.
        """
        examples = list(self.examples(window))
        answers = answer_all(predictor, [example.fields for example in examples], self.how)
        answering = self.how.predictive or predictor.recommended

        def line(of: tuple[Row, Example, Prediction | LaploraError]) -> Line:
            (number, _), example, answer = of
            if isinstance(answer, LaploraError):
                raise RowError(number, str(answer))
            record: dict[str, Any] = {
                "number": number,
                "truth": example.truth,
                "decision": answer.decision,
                "methods": method_rows(predictor.artifact.manifest, answering, answer),
            }
            if self.with_answers:
                record |= {"fields": example.fields, "answer": written_answer(answer, example.fields)}
            return json.dumps(record).encode() + b"\n", False

        return each_in_turn(self.place, zip(window, examples, answers, strict=True), line)
