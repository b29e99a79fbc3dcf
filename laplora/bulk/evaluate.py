"""Figures of a file of labelled rows, whoever answers them: workers keep each row's numbers, and one process measures.

A row's numbers are written as JSON, which keeps a float64 to its last bit. So the figures are those of one process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.bulk.answering import How, check_predictive, encode, finite_answers, load
from laplora.bulk.folders import absolute
from laplora.bulk.measuring import WINDOW, MeasureHow, measure_rows, numbers_of, task_of, told_problems, truth_of
from laplora.bulk.parts import Finished, Parts
from laplora.bulk.rows import Row, Source, is_too_long
from laplora.bulk.run import Workers, described, finish
from laplora.errors import DataError, LaploraError

if TYPE_CHECKING:
    from laplora.answers.evaluation import MethodRow
    from laplora.answers.labels import Truth
    from laplora.artifact.folder import Artifact
    from laplora.bulk.workers import Line
    from laplora.predictor import Predictor
    from laplora.prompts.examples import Example


@dataclass(frozen=True)
class Evaluated:
    """What labelled rows say of an artifact: metrics by method, as ``POST /evaluate`` gives them, of so many rows."""

    artifact: Artifact
    rows: int
    methods: dict[str, dict[str, Any]]


def evaluate_file(
    artifact: str | Path,
    source: str | Path,
    parts: str | Path,
    *,
    workers: int = 1,
    device: str = "auto",
    threads: int = 1,
    label_field: str = "label",
    predictive: str | None = None,
    order_average: str | None = None,
    truncate: bool = False,
    batch_size: int = 16,
    bins: int = 15,
    resamples: int = 1000,
    seed: int = 0,
    allowed_bases: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Evaluated:
    """Return the metrics of an artifact on a file of labelled rows; the same figures however many work.

    The rows are read through once before any is answered: all of them have to be usable. The numbers of all rows are in
    memory when they are measured.

    Args:
        parts: folder or URL for the finished blocks; the same call goes on from them, and they go in the end.
        label_field: field of a row that has its label, or its list of labels.
        bins: of the ECE; resamples, seed: of the bootstrap, without which (0) there are no intervals.

    The others are those of ``laplora.bulk.score.score_file``, and so are errors but for:

    Raises:
        DataError: rows that cannot be used or answered, by number.
    """
    from laplora.artifact.fetched import FetchRules, local_artifact

    how, who = How(predictive, batch_size, truncate, order_average), Workers(workers, device, threads)
    measure_how = MeasureHow(bins, resamples, seed)
    folder = local_artifact(artifact, progress=progress, rules=FetchRules(tuple(allowed_bases)))
    return evaluate(folder, str(source), str(parts), how, who, measure_how, label_field, progress=progress)


def evaluate(
    artifact: Path,
    source: str,
    parts: str,
    how: How,
    who: Workers,
    measure_how: MeasureHow,
    label_field: str,
    *,
    progress: Callable[[str], None] | None = None,
) -> Evaluated:
    """Do what ``evaluate_file`` does."""
    from laplora.artifact.folder import read_artifact

    read = read_artifact(artifact)
    check_predictive(read, how)
    rows = Source.at(source, WINDOW)
    of_rows = Labelled(source, label_field)
    _check(rows, of_rows, read)
    kept = Parts(absolute(parts))
    options = {**asdict(how), "label_field": label_field}
    job = EvaluateJob(artifact.absolute(), read.digest, who.worker_device, how, of_rows)
    run = described("evaluate", read, rows, who, options)
    numbers: list[dict[str, MethodRow]] = []
    truths: list[Truth] = []
    with kept.held(progress) as check:

        def stop(block: Finished) -> None:
            check()
            _refuse_bad(kept, block)

        blocks = finish(job, rows, kept.place, run, who, progress=progress, stop=stop)
        for line in kept.lines(blocks):
            record = json.loads(line)
            numbers.append({name: (probs, score) for name, (probs, score) in record["methods"].items()})
            truths.append(tuple(record["truth"]) if isinstance(record["truth"], list) else record["truth"])
        methods = measure_rows(read.manifest, numbers, truths, measure_how)
        check()
        kept.remove()
    return Evaluated(read, len(numbers), methods)


@dataclass(frozen=True)
class Labelled:
    """How rows are read: what errors call their file, and the field that has the label."""

    place: str
    label_field: str

    def examples(self, rows: Iterable[Row], artifact: Artifact) -> Iterator[Example]:
        """Yield rows as examples, in order; DataError: after them, the first that cannot be used."""
        from laplora.data.labelled import labelled_example
        from laplora.data.records import RowError, decoded, each_in_turn, json_record

        task, several = task_of(artifact), artifact.manifest.likelihood == "bernoulli"

        def example(row: Row) -> Example:
            if is_too_long(row[1]):
                raise RowError(row[0], f"has more than {len(row[1]) - 1:,} bytes")
            record = json_record((row[0], decoded(row)))
            return labelled_example(self.place, record, task, self.label_field, {}, several=several)

        yield from each_in_turn(self.place, rows, example)


def _check(source: Source, labelled: Labelled, artifact: Artifact) -> None:
    """Read all rows; DataError: there are none, or some cannot be used."""
    rows = (row for block in source.blocks() for window in source.windows(block) for row in window)
    if not sum(1 for _ in labelled.examples(rows, artifact)):
        raise DataError(f"{source.place}: holds no rows")


@dataclass(frozen=True)
class EvaluateJob:
    """Each row's numbers by an artifact of this content."""

    artifact: Path
    digest: str
    device: str
    how: How
    labelled: Labelled

    def start(self) -> Callable[[Sequence[Row]], Iterator[Line]]:
        """Load the artifact."""
        predictor = load(self.artifact, self.device, self.how, digest=self.digest)
        return partial(measure_window, predictor, how=self.how, labelled=self.labelled)


def measure_window(predictor: Predictor, window: Sequence[Row], how: How, labelled: Labelled) -> Iterator[Line]:
    """Yield a line of numbers for each row, in order: the right label's place, and probabilities and score by method.

    The line of a row that cannot be answered says why.
    """
    manifest = predictor.artifact.manifest
    examples = list(labelled.examples(window, predictor.artifact))
    questions, problems = [], {}
    for place, example in enumerate(examples):
        try:
            questions.append(encode(predictor, example.fields, how))
        except LaploraError as error:
            problems[place] = f"{example.id}: {error}"
    answered = iter(finite_answers(predictor, questions, how))
    for place, ((number, _), example) in enumerate(zip(window, examples, strict=True)):
        record: Mapping[str, Any]
        if place in problems:
            record = {"problem": problems[place]}
        elif (answer := next(answered)) is None:
            record = {"problem": f"{example.id}: the model has no finite answer"}
        else:
            record = {"truth": truth_of(example), "methods": numbers_of(manifest, how, *answer)}
        yield number, json.dumps(record).encode() + b"\n", "problem" in record


def _refuse_bad(kept: Parts, block: Finished) -> None:
    """Raise DataError where a block has rows without an answer: no figures could be of all rows any more."""
    if block.bad:
        problems = [record["problem"] for line in kept.lines([block]) if "problem" in (record := json.loads(line))]
        raise DataError(told_problems(problems))
