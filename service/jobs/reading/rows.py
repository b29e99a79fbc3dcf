"""The rows of a job with their answers, in order, a page at a time: from its upload and from the database.

``answered_pages`` is what everything that looks at single rows stands on: downloads and reports.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

from laplora.answers.reasons import decision_reason
from laplora.answers.written import FULL, Shown
from service.errors import RowsNotKeptError, UploadChangedError
from service.jobs.store.disk import Disk
from service.jobs.store.numbers import read_answer
from service.jobs.store.records import About, Job, ScoredRow

#: The most rows of a page, and bytes of the upload beside one row's.
_PAGE_ROWS, _PAGE_BYTES = 256, 2**20


@dataclass(frozen=True)
class AnsweredRow:
    """A row of an upload that is answered, or has no answer.

    Attributes:
        row: its number, from 0.
        line: as it was uploaded, a JSON object; columns: the same, read.
        scored: its numbers by method, where its true labels are, and its answer; None where it could not be scored.
        error: the code of why; None where it was.
        about: of the job.
    """

    row: int
    line: bytes
    scored: ScoredRow | None
    error: str | None
    about: About

    @cached_property
    def columns(self) -> dict[str, Any]:
        """Every column of the upload that the row has, by name."""
        columns: dict[str, Any] = json.loads(self.line)
        return columns

    @cached_property
    def answer(self) -> dict[str, Any] | None:
        """The answer, as of POST /predict, without logits; None of a row without a score."""
        if self.scored is None or self.scored.answer is None:
            return None
        answer = read_answer(self.scored.answer, self.about.labels)
        # It may be a part of the prompt, which the database has nothing of.
        choices = self.columns.get("choices") if "choices" in self.about.fields else None
        label = answer["label"]
        answer["label_text"] = choices[self.about.labels.index(label)] if isinstance(choices, list) else label
        answer["decision_reason"] = decision_reason(answer, self.about.review_rule)
        return answer


def check_kept(job: Job) -> None:
    """Raise RowsNotKeptError for a job whose rows are not kept."""
    if not job.keeps_rows:
        raise RowsNotKeptError(
            "nothing is kept of this job's rows: it was cancelled, or was uploaded with keep_rows=false"
        )


async def answered_pages(disk: Disk, job: Job, *, first: int = 0) -> AsyncGenerator[Sequence[AnsweredRow]]:
    """Yield the rows that are over by now, from number ``first`` on, in order; of a job that has ended all there are.

    Raises:
        RowsNotKeptError: nothing is kept of them, or not any more.
        UploadChangedError: the upload is not what it was; its field names the line.
        StorageFullError, JobsUnavailableError: the database, or the store of uploads, does not answer.
    """
    check_kept(job)
    end = job.rows_done
    try:
        file = await disk.in_files(disk.folder.open, job.id, job.about.upload_bytes)
    except FileNotFoundError:
        raise RowsNotKeptError(
            "the job's upload is not where this server keeps uploads: the job was removed, or another server has it in "
            "a folder that they do not share"
        ) from None
    try:
        row = 0
        while row < end:
            lines = await disk.in_files(_lines, file, end - row)
            if not lines:
                raise UploadChangedError(
                    f"line {row + 1}: the upload was changed where the server keeps it", field=f"lines.{row + 1}"
                )
            after = row + len(lines)
            if after > first:
                rows = (row, after)
                scored = {one.row: one for one in await disk.in_database(disk.tables.reads.answers, job.number, rows)}
                bad = dict(await disk.in_database(disk.tables.reads.bad_rows, job.number, rows))
                if len(scored) + len(bad) < len(lines):
                    raise RowsNotKeptError("the job was removed")
                yield [
                    AnsweredRow(number, line, scored.get(number), bad.get(number), job.about)
                    for number, line in enumerate(lines, row)
                    if number >= first
                ]
            row = after
    finally:
        await disk.in_files(file.close)


def _lines(file: BinaryIO, most: int) -> list[bytes]:
    """Return the next lines of an upload, without their ends."""
    lines: list[bytes] = []
    size = 0
    while len(lines) < min(most, _PAGE_ROWS) and size < _PAGE_BYTES:
        line = file.readline()
        if not line:
            break
        size += len(line)
        lines.append(line.strip())
    return lines


async def json_lines(disk: Disk, job: Job, *, first: int = 0, shown: Shown = FULL) -> AsyncGenerator[bytes]:
    """Yield a job's rows that are over as JSON Lines, from number ``first`` on; errors as of ``answered_pages``.

    A line is ``{"line", "input", "answer", "error"}``, the input as it was uploaded.
    """
    async with aclosing(answered_pages(disk, job, first=first)) as pages:
        async for page in pages:
            yield await disk.in_files(_joined, page, shown)


def _joined(page: Sequence[AnsweredRow], shown: Shown) -> bytes:
    return b"".join(_json_line(one, shown) for one in page)


def _json_line(one: AnsweredRow, shown: Shown) -> bytes:
    whole = one.answer
    answer = json.dumps(
        None if whole is None else shown.select(whole), ensure_ascii=False, separators=(",", ":")
    ).encode()
    error = b"null" if one.error is None else f'"{one.error}"'.encode()
    return b'{"line":%d,"input":%b,"answer":%b,"error":%b}\n' % (one.row + 1, one.line, answer, error)
