"""Answers to a file of rows, in a file: a line for each, as ``POST /predict`` writes it, in the order of the rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplora.answers.written import written_answer
from laplora.bulk.answering import WINDOW, How, answer_all, load, read
from laplora.bulk.parts import Line, Parts
from laplora.bulk.rows import Source
from laplora.bulk.workers import Workers, finish
from laplora.data.lines import Row, json_row
from laplora.data.records import RowError
from laplora.errors import ConfigError, InvalidInputError, LaploraError
from laplora.remote.places import place_of

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact
    from laplora.predictor import Predictor


def predict_file(
    artifact: str | Path,
    source: str | Path,
    target: str | Path,
    how: How = How(),  # noqa: B008  is frozen
    workers: Workers = Workers(),  # noqa: B008
    *,
    window: int = WINDOW,
    allowed_bases: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> tuple[int, int]:
    """Answer every row of a file, and return how many there are and how many have no answer.

    The bytes that are written are the same however many work.

    A row that cannot be answered has the line ``{"line": N, "error": {...}}`` in its place. Finished blocks of rows are
    kept in the folder ``TARGET.parts``, of a target in a store in the working directory; the same call goes on from
    them, also with other ``workers``. The target appears with its last line, and the blocks go then. Memory holds a
    window of rows and a block of answers.

    Args:
        artifact: its folder, which every worker must reach, or as text an address (``laplora.remote.address``).
        source: path or URL (``s3://BUCKET/KEY``) of JSON Lines, CSV or Parquet, whose columns are the template's fields
            and ``id``; others are not read.
        target: path or URL of the answers, which is not there yet, nor when they are written.
        window: rows that are read together, and batched by length; fewer where they have many bytes.
        allowed_bases: as of ``laplora.bulk.answering.read``; progress: called with lines for people.

    Raises:
        ConfigError: options that cannot work, a target that is there, finished blocks of another run or one that works
            on them now, a base model that nobody allowed, or a package that is not installed.
        DataError: a source that cannot be read, or that was changed meanwhile; a store that does not answer.
        ArtifactError, ModelError: as ``Predictor.load``.
    """
    loaded, place = read(artifact, how, allowed_bases, progress), place_of(target)
    rows = Source.at(source, window, ("id", "prompt", *loaded.manifest.template.template().fields))
    local = str(target).rpartition("/")[2] if "://" in str(target) else target
    parts = Parts(Path(f"{local}.parts"))
    with parts.held():
        if place.exists():
            raise ConfigError(f"{target}: is there already: remove it, or write to another place")
        start = partial(answering, loaded, workers.worker_device, how)
        blocks = finish(start, rows, parts, workers, loaded, {"command": "predict", **how.recorded}, progress)
        try:
            place.write(parts.lines(blocks), new=True)
        except FileExistsError:
            raise ConfigError(
                f"{target}: is there already, since this run began. The finished blocks are kept in {parts.folder}: "
                "remove the file and run again, or rename the folder to OTHER.parts and give --out OTHER"
            ) from None
        parts.remove()
    return sum(block.rows for block in blocks), sum(block.bad for block in blocks)


def answering(artifact: Artifact, device: str, how: How) -> Callable[[Sequence[Row]], Iterator[Line]]:
    """Load an artifact, and return what answers a window of rows by it."""
    return partial(answer_window, load(artifact, device), how=how)


def answer_window(predictor: Predictor, window: Sequence[Row], how: How) -> Iterator[Line]:
    """Yield the line that answers each row, in order."""
    inputs, ids = list[Any](), list[Any]()
    for row in window:
        try:
            fields = json_row(row)
            if isinstance(fields.get("id"), bool | list | dict):
                raise RowError(row[0], "id must be a text or a number")
            ids.append(fields.pop("id", None))
            inputs.append(fields)
        except RowError as error:
            ids.append(None)
            inputs.append(InvalidInputError(error.problem))
    for (number, _), id, fields, answer in zip(window, ids, inputs, answer_all(predictor, inputs, how), strict=True):
        try:
            if isinstance(answer, LaploraError):
                raise answer
            line = how.shown.select(written_answer(answer, fields, id=id, variance=how.variance))
        except LaploraError as error:
            line = {"line": number, "error": {"message": str(error), "field": getattr(error, "field", None)}}
        yield json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n", "error" in line
