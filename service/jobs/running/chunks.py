"""One chunk of a job: read from its upload, and scored by the artifact that the job was uploaded for, and no other."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laplora.answers.evaluation import method_rows
from laplora.answers.labels import Truth
from laplora.answers.written import written_answer
from laplora.errors import ArtifactNotFoundError, LaploraError, UpstreamError
from service.artifacts.host import ArtifactHost
from service.errors import (
    ArtifactChangedError,
    BatchTooLargeError,
    DeviceFaultError,
    DeviceMemoryError,
    ShelfFullError,
    UnscorableInputError,
    UploadChangedError,
    kind_of,
)
from service.jobs.intake.lines import read_row
from service.jobs.running.tools import Tools
from service.jobs.store.numbers import kept_answer
from service.jobs.store.records import About, ArtifactVersion, Job, ReadRow, RowRange, ScoredRow
from service.scoring.fairness import JOB_PREFIX
from service.scoring.plan import Plan
from service.scoring.ticket import Ask

if TYPE_CHECKING:
    from service.scoring.model import Model


class Item(NamedTuple):
    """A row that is to be scored: its number, from 0, its fields, and where its true labels are, if it has any."""

    row: int
    fields: Mapping[str, Any]
    truth: Truth | None


class Chunk(NamedTuple):
    """Consecutive rows of a job: those to score, the codes of the others, and where in the upload (bytes) they are."""

    rows: RowRange
    items: Sequence[Item]
    bad: Mapping[int, str]
    begin: int
    end: int


class RowError(Exception):
    """A chunk has no answer because of one of its rows, the one of this number; None where nobody knows which."""

    def __init__(self, row: int | None, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.row, self.cause = row, cause


def read_chunk(
    path: Path,
    about: About,
    read_uploaded: ReadRow,
    *,
    first: int,
    offset: int,
    rows: int,
    most_bytes: int,
    bad: Mapping[int, str],
) -> Chunk:
    """Return at most ``rows`` rows of an upload from ``first`` on, and no more than ``most_bytes`` but for one row.

    Args:
        bad: rows to drop, and the codes of why.

    Raises:
        UploadChangedError: what is there is not what was checked; its field names the line.
    """
    items: list[Item] = []
    row = first
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != about.upload_bytes:
            raise _changed(row)
        file.seek(offset)
        # By bytes too: a few hundred of the longest lines would be a lot of memory.
        while row < first + rows and (row == first or file.tell() - offset < most_bytes):
            begin = file.tell()
            try:
                read = read_row(read_uploaded, file.readline(most_bytes + 1), about.label_names, about.fields)
            except LaploraError as error:
                if row == first:
                    raise _changed(row) from error
                # The rows before it are as they were: they are answered first.
                file.seek(begin)
                break
            if row not in bad:
                items.append(Item(row, read.fields, read.truth))
            row += 1
        dropped = {number: code for number, code in bad.items() if first <= number < row}
        return Chunk((first, row), items, dropped, offset, file.tell())


def _changed(row: int) -> UploadChangedError:
    return UploadChangedError(
        f"line {row + 1}: the upload was changed where the server keeps it: upload it again", field=f"lines.{row + 1}"
    )


async def score_chunk(
    tools: Tools, model: Model, job: Job, chunk: Chunk
) -> tuple[list[ScoredRow], dict[int, Exception]]:
    """Return the chunk's answers, and, by number, the error of each row whose answer is not finite.

    Raises:
        RowError: one of its rows cannot be scored; without it the others may be.
        BatchTooLargeError: the queue could never hold so many.
        LaploraError: nothing could be scored now: no room or place, not ready, the server is stopping.
    """
    about, predictive, manifest = job.about, model.recommended, model.artifact.manifest
    plan = Plan(
        model,
        [item.fields for item in chunk.items],
        # Without a label nothing is measured, and one predictive is enough.
        ask=Ask(predictive, also=model.predictives if any(item.truth is not None for item in chunk.items) else ()),
        caller=f"{JOB_PREFIX}{job.id}",
        truncate=about.options.truncate,
    )
    try:
        predictions = await tools.scorer.score(plan)
    except Exception as error:
        place = re.match(r"inputs\.(\d+)\b", getattr(error, "field", None) or "")
        row = chunk.items[int(place[1])].row if place else None
        # A refusal for a while, or for too much, concerns no single row, unless it names one.
        refused = isinstance(error, BatchTooLargeError | ShelfFullError) or kind_of(error).status in (429, 503)
        # If the server outlives a lost device, a row may be the cause, and would lose the next device.
        lost = isinstance(error, DeviceFaultError) and not tools.scorer.backend.failed
        if row is None and refused and not lost and not isinstance(error, DeviceMemoryError):
            raise
        if isinstance(error, UpstreamError) and row is None:  # whatever the row
            raise
        raise RowError(row, error) from error
    rows: list[ScoredRow] = []
    bad: dict[int, Exception] = {}
    for item, prediction in zip(chunk.items, predictions, strict=True):
        if not prediction.finite:
            bad[item.row] = UnscorableInputError(f"the model has no finite answer for line {item.row + 1}")
            continue
        labelled = item.truth is not None
        methods = method_rows(manifest, predictive, prediction) if labelled else {}
        written = written_answer(prediction, item.fields, checked=True)
        unfamiliar = None if manifest.familiarity is None else "unfamiliar" in prediction.flags
        answer = kept_answer(written) if about.keep_rows else None
        rows.append(ScoredRow(item.row, item.truth, methods, unfamiliar, answer, written))
    return rows, bad


@asynccontextmanager
async def pinned(artifacts: ArtifactHost, wanted: ArtifactVersion) -> AsyncIterator[Model]:
    """Yield the model of the artifact with this name and digest: its content is part of what a result says.

    Inside the block it stays in memory. One that is not loaded may be again: that is to be waited for.

    Raises:
        ArtifactChangedError: it is gone, or of another content.
        ArtifactNotLoadedError, DeviceFaultError, DrainingError, NotReadyError: as ``lease``.
    """
    try:
        async with artifacts.lease(wanted.name) as model:
            if model.artifact.digest != wanted.digest:
                raise ArtifactChangedError(
                    f"the job began on other content of artifact {wanted.name!r} than is loaded now: upload it again"
                )
            yield model
    except ArtifactNotFoundError:
        raise ArtifactChangedError(
            f"the job began on artifact {wanted.name!r}, which is gone: upload it again for another"
        ) from None
