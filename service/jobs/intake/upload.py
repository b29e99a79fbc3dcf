"""One upload on its way to disk: each row checked as POST /evaluate would check it, written as a line, forgotten."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from laplora.answers.labels import LabelNames
from laplora.errors import LaploraError
from service.errors import (
    BatchTooLargeError,
    BodyTooLargeError,
    ClientGoneError,
    DeadlineError,
    InvalidRequestError,
    RefusedLine,
    kind_of,
    told_of,
)
from service.jobs.intake.lines import Lines, read_row
from service.jobs.store.folder import private_file, storage_errors
from service.jobs.store.records import ReadRow
from service.settings import Settings

#: How many refused lines are told of one by one; the others are counted.
TOLD_LINES = 100
#: An upload with so many of them is looked at no further.
MOST_REFUSED = 1000
#: Most columns of one upload, and most characters of one name and of all together: a server has those of every job in
#: memory.
MAX_COLUMNS, MAX_NAME_CHARS, MAX_NAMES_CHARS = 128, 256, 8192


class IdleUploadError(DeadlineError):
    """An upload brought nothing for too long."""


def new_content() -> blake2b:
    """Return what takes the bytes of an upload: its ``hexdigest`` is the ``content`` of ``About``."""
    return blake2b(digest_size=16)


async def steadily(body: AsyncIterator[bytes], idle_s: float) -> AsyncIterator[bytes]:
    """Yield what comes of an upload.

    Raises:
        IdleUploadError: nothing came for ``idle_s`` seconds; the time between two asks for more is not counted.
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(body, None)
        except TimeoutError:
            raise IdleUploadError(
                f"nothing of the upload came for job_upload_idle_s ({idle_s:g} s): send it without pauses"
            ) from None
        if chunk is None:
            return
        yield chunk


class Upload:
    """Writes an upload's rows into a new file. Blocks, and is for one thread at a time.

    Memory is that of one chunk and one row, and 16 bytes for each id, which must not come twice.

    Args:
        path: of the file; read_uploaded: how a row is read.
        tokens_of: returns an input's tokens, of all the prompts that are made of it, or raises what is wrong with it.
        labels, template_fields: the artifact's.
        row_bytes: of a row's answer at most, of one with a label (True) and of one without.

    Attributes:
        rows, labelled, tokens, size_bytes: of the rows so far, refused ones with them; bytes as they are written.
        answer_bytes: that the answers to them take at most.
        columns: their names, in the order in which they came.
        content: takes the bytes that came, for their digest.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        read_uploaded: ReadRow,
        *,
        tokens_of: Callable[[dict[str, Any]], int],
        labels: LabelNames,
        template_fields: Sequence[str],
        row_bytes: Mapping[bool, int],
    ) -> None:
        self._settings, self._read_uploaded, self._tokens_of = settings, read_uploaded, tokens_of
        self._labels, self._template_fields, self._row_bytes = labels, template_fields, row_bytes
        self._lines = Lines()
        self.content = new_content()
        self._ids: set[bytes] = set()
        #: The first errors of lines, and their number; nothing is written from the first on.
        self._refused: list[RefusedLine] = []
        self._refused_count = 0
        self._first_error: LaploraError | None = None
        self._stopped = False
        self.rows = self.labelled = self.tokens = self.size_bytes = self.answer_bytes = self._line = 0
        self.columns: dict[str, None] = {}
        with storage_errors():
            self._descriptor = private_file(path)

    def feed(self, chunk: bytes) -> None:
        """Check and write the rows that are whole with this chunk.

        Raises:
            BodyTooLargeError, BatchTooLargeError: more bytes of a line, or more lines, than the settings allow.
            MediaTypeError: the upload is no JSON Lines.
            LaploraError: as ``finish``, of 1,000 rows that would be refused.
            ClientGoneError: it was stopped.
        """
        self.content.update(chunk)
        for line in self._lines.feed(chunk):
            self._take(line)
        self._check_size(self._lines.pending, self._line + 1)

    def finish(self) -> None:
        """Write what is left and bring the file to disk.

        Raises:
            InvalidRequestError: there is no row; else as ``feed``.
            LaploraError: rows that POST /evaluate would refuse as inputs: the first one's error, whose field names its
                line, with ``lines`` for the first 100 and ``lines_bad`` for how many there are, up to 1,000.
        """
        for line in self._lines.finish():
            self._take(line)
        self.raise_refused()
        if self.rows == 0:
            raise InvalidRequestError("the upload is empty: send one input a line", field="lines")
        with storage_errors():
            os.fsync(self._descriptor)

    def raise_refused(self) -> None:
        """Raise what is wrong with lines so far, as ``finish`` does, where something is."""
        if self._first_error is not None:
            self._first_error.lines = self._refused  # type: ignore[attr-defined]
            self._first_error.lines_bad = self._refused_count  # type: ignore[attr-defined]
            raise self._first_error from None

    def stop(self) -> None:
        """Let ``feed`` and ``finish`` end soon, from whatever thread: nobody waits for what they return."""
        self._stopped = True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _take(self, line: bytes) -> None:
        """Check a row, and write it if no row was refused yet; a blank line is none."""
        self._line += 1
        self._check_size(len(line), self._line)
        blank, limit = not line.strip(), self._settings.max_job_rows
        # Packed, millions of blank lines are a few bytes.
        if (self._line - self.rows if blank else self.rows + 1) > limit:
            self.raise_refused()
            raise BatchTooLargeError(
                f"the upload has more than {limit} {'blank ' * blank}lines, max_job_rows: send it in parts",
                field="lines",
                limit=limit,
                got=limit + 1,
            )
        if blank:
            return
        if self._stopped:
            raise ClientGoneError("the upload was given up while its rows were checked")
        self.rows += 1
        self.size_bytes += len(line) + 1
        try:
            self._check(line)
        except LaploraError as error:
            if kind_of(error).status not in (413, 422):
                raise
            self._refuse(error)
        if not self._refused:
            # It is JSON: what ends lines elsewhere is between its parts, never inside of a string.
            _write(self._descriptor, line.replace(b"\r", b" ") + b"\n")

    def _check(self, line: bytes) -> None:
        row = read_row(self._read_uploaded, line, self._labels, self._template_fields)
        if row.id is not None:
            digest = blake2b(row.id.encode(), digest_size=16).digest()
            if digest in self._ids:
                raise InvalidRequestError(
                    "an earlier line has the same id: make ids unique or leave them out", field="id"
                )
            self._ids.add(digest)
        for name in row.columns:
            if name not in self.columns:
                self._check_column(name)
                self.columns[name] = None
        self.labelled += row.truth is not None
        self.answer_bytes += self._row_bytes[row.truth is not None]
        self.tokens += self._tokens_of(dict(row.fields))

    def _check_column(self, name: str) -> None:
        chars = sum(map(len, self.columns)) + len(name)
        for got, limit, what in (
            (len(self.columns) + 1, MAX_COLUMNS, "with it the upload has more than {limit} columns"),
            (len(name), MAX_NAME_CHARS, "the name of a column has more than {limit} characters"),
            (chars, MAX_NAMES_CHARS, "the names of all columns have more than {limit} characters"),
        ):
            if got > limit:
                message = f"{what.format(limit=limit)}: leave out what nothing needs, or shorten names"
                raise InvalidRequestError(message, limit=limit, got=got)

    def _refuse(self, error: LaploraError) -> None:
        located = _located(error, self._line)
        self._first_error = self._first_error or located
        self._refused_count += 1
        if len(self._refused) < TOLD_LINES:
            self._refused.append(told_of(located, self._line))
        if self._refused_count >= MOST_REFUSED:
            self.raise_refused()

    def _check_size(self, size: int, number: int) -> None:
        limit = self._settings.max_body_bytes
        if size > limit:
            raise BodyTooLargeError(
                f"line {number} has at least {size} bytes, max_body_bytes is {limit} of one line",
                field=f"lines.{number}",
                limit=limit,
                got=size,
            )


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    with storage_errors():
        while left:
            left = left[os.write(descriptor, left) :]


def _located(error: LaploraError, number: int) -> LaploraError:
    """Return the error of a line, its field and its message now the upload's; lines count from 1."""
    field = getattr(error, "field", None)
    error.args = (f"line {number}: {error}",)
    error.field = f"lines.{number}.{field}" if field and field != "body" else f"lines.{number}"  # type: ignore[attr-defined]
    return error
