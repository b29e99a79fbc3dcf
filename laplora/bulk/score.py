"""Answers to a file of rows, in a file: a line for each, as ``POST /predict`` writes it, in the order of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.bulk.answering import How, check_predictive, encode, finite_answers, load
from laplora.bulk.folders import absolute, place_of
from laplora.bulk.parts import TOLD_ROWS, Parts
from laplora.bulk.rows import Row, Source, is_too_long
from laplora.bulk.run import Workers, described, finish
from laplora.errors import ConfigError, InvalidInputError, LaploraError, NonFiniteError, needs

if TYPE_CHECKING:
    from laplora.bulk.workers import Line
    from laplora.predictor import Predictor
    from service.http.schemas.inputs import Input


@dataclass(frozen=True)
class Scored:
    """What was written.

    Attributes:
        rows: lines; bad: those without an answer.
        first_bad: numbers of the first of them, from 1, ``TOLD_ROWS`` at most.
    """

    rows: int
    bad: int
    first_bad: tuple[int, ...]


def score_file(
    artifact: str | Path,
    source: str | Path,
    target: str | Path,
    *,
    workers: int = 1,
    device: str = "auto",
    threads: int = 1,
    predictive: str | None = None,
    order_average: str | None = None,
    target_risk: float | None = None,
    truncate: bool = False,
    batch_size: int = 16,
    window: int = 256,
    allowed_bases: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Scored:
    """Answer every row of a file, and return what was written; the same bytes however many work.

    A row that cannot be answered has the line ``{"line": N, "error": {...}}`` in its place. Finished blocks of rows are
    kept in ``TARGET.parts``; the same call goes on from them, also with other ``workers``. The target appears with its
    last line, and the blocks go then. Memory does not grow with the source.

    Args:
        artifact: its folder, which every worker must reach, or as text an address (``laplora.remote.address``).
        source: path or URL (``s3://BUCKET/KEY``) of JSON Lines (``.jsonl``, ``.ndjson``) or Parquet (``.parquet``; its
            columns are the template's fields and ``id``, others are not read).
        target: path or URL of the answers, which is not there yet.
        workers: 1 is this process; more are actors of Ray, which needs the extra ``ray``. Each loads the model.
        device: ``auto``, ``cpu`` or ``cuda``; on CUDA each worker has a GPU of its own.
        threads: of torch, in each worker; with other threads the last digits may be others.
        predictive: of the artifact; None: the recommended. order_average: ``reverse`` or ``all``.
        target_risk: error rate that accepted answers may have; None: the artifact's.
        truncate: whether inputs that are too long are cut.
        batch_size: rows of a batch, at most.
        window: rows that are read together, and batched by length; fewer where they have many bytes.
        allowed_bases: base models that an artifact at an address may have (``laplora.artifact.allowed_bases``).
        progress: called with lines for people.

    Raises:
        ConfigError: options that cannot work, a target that is there, finished blocks of another run or one that works
            on them now, a base model that nobody allowed, or a package that is not installed.
        DataError: a source that cannot be read, or that was changed meanwhile; a store that does not answer.
        ArtifactError, ModelError: as ``Predictor.load``.
    """
    from laplora.artifact.fetched import FetchRules, local_artifact

    how = How(predictive, batch_size, truncate, order_average, target_risk)
    who = Workers(workers, device, threads)
    folder = local_artifact(artifact, progress=progress, rules=FetchRules(tuple(allowed_bases)))
    return score(folder, str(source), str(target), how, who, window=window, progress=progress)


def score(
    artifact: Path,
    source: str,
    target: str,
    how: How,
    who: Workers,
    *,
    window: int,
    progress: Callable[[str], None] | None = None,
) -> Scored:
    """Do what ``score_file`` does."""
    try:
        from service.http.answers import prediction_out  # noqa: F401  is what answers are written by
    except ImportError as error:
        raise needs("service", error) from None
    from laplora.artifact.folder import read_artifact

    folder, name = place_of(target)
    if folder.exists(name):
        raise ConfigError(f"{target}: is there already: remove it, or write to another place")
    read = read_artifact(artifact)
    check_predictive(read, how)
    template = read.manifest.template.template()
    rows = Source.at(source, window, ("id", "prompt", *template.fields))
    job = ScoreJob(artifact.absolute(), read.digest, who.worker_device, how, rows.is_parquet)
    kept = Parts(f"{absolute(target)}.parts")
    with kept.held(progress) as check:
        if folder.exists(name):  # another run may have ended since
            raise ConfigError(f"{target}: is there already: remove it, or write to another place")
        run = described("predict", read, rows, who, asdict(how))
        blocks = finish(job, rows, kept.place, run, who, progress=progress, stop=lambda _: check())
        folder.write(name, kept.lines(blocks))
        check()
        kept.remove()
    first_bad = [number for block in blocks for number in block.first_bad][:TOLD_ROWS]
    return Scored(sum(block.rows for block in blocks), sum(block.bad for block in blocks), tuple(first_bad))


@dataclass(frozen=True)
class ScoreJob:
    """Answers by an artifact of this content."""

    artifact: Path
    digest: str
    device: str
    how: How
    number_ids: bool = False

    def start(self) -> Callable[[Sequence[Row]], Iterator[Line]]:
        """Load the artifact."""
        predictor = load(self.artifact, self.device, self.how, digest=self.digest)
        return partial(answer_window, predictor, how=self.how, number_ids=self.number_ids)


def answer_window(predictor: Predictor, window: Sequence[Row], how: How, *, number_ids: bool = False) -> Iterator[Line]:
    """Yield the line that answers each row, in order, with its number and whether it has no answer.

    Args:
        number_ids: whether an ``id`` may be a number, as in a column of Parquet; the answer then has the same number.
            Otherwise it is text, as of ``POST /predict``.
    """
    from service.http.answers import prediction_out
    from service.http.schemas.predict import PredictOptions

    found: list[dict[str, Any] | Input] = []
    ids: dict[int, int | float] = {}
    questions = []
    for number, line in window:
        try:
            if number_ids and (given := _number_id(line)) is not None:
                ids[number], line = given
            item = _input(line)
            questions.append(encode(predictor, item.template_fields, how))
            found.append(item)
        except LaploraError as error:
            found.append(_failed(number, error))
    answered = iter(finite_answers(predictor, questions, how))
    for (number, _), one in zip(window, found, strict=True):
        if isinstance(one, dict):
            yield _line(number, one)
            continue
        try:
            if (answer := next(answered)) is None:
                raise NonFiniteError("the model has no finite answer to this input: change it or leave it out")
            out = prediction_out(number, one, answer[0], PredictOptions())
        except LaploraError as error:
            yield _line(number, _failed(number, error))
        else:
            written = out.model_dump(mode="json", exclude_unset=True)
            yield _line(number, written | ({"id": ids[number]} if number in ids else {}))


def _line(number: int, written: dict[str, Any]) -> Line:
    return number, json.dumps(written, ensure_ascii=False).encode() + b"\n", "error" in written


def _failed(number: int, error: LaploraError) -> dict[str, Any]:
    return {"line": number, "error": {"message": str(error), "field": getattr(error, "field", None)}}


def _number_id(line: bytes) -> tuple[int | float, bytes] | None:
    """Return the ``id`` of a row of Parquet that is a number, and the row with it as text; None where it is none."""
    if is_too_long(line):
        return None
    fields = json.loads(line)
    number = fields.get("id")
    if not isinstance(number, int | float) or isinstance(number, bool):
        return None
    return number, json.dumps(fields | {"id": json.dumps(number)}).encode()


def _input(line: bytes) -> Input:
    """Return a line as an input; InvalidInputError where it is none."""
    from pydantic import ValidationError

    from service.http.schemas.inputs import Input

    if is_too_long(line):
        raise InvalidInputError(f"the line has more than {len(line) - 1:,} bytes")
    try:
        return Input.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].replace(" at line 1 column ", " at column ")
        raise InvalidInputError(f"{place}: {message}" if place else message) from None
