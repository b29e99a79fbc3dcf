"""One upload on its way to disk: each line checked as POST /evaluate would check it, written, and forgotten."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from laplora.errors import LaploraError
from service.errors import BatchTooLargeError, BodyTooLargeError, DeadlineError, InvalidJsonError, InvalidRequestError
from service.http.json_parsing import parse_json
from service.http.schemas.inputs import LabelledInput
from service.jobs.folder import private_file, storage_errors
from service.scoring.labels import LabelNames, Truth
from service.settings import Settings


class IdleUploadError(DeadlineError):
    """An upload brought nothing for too long."""


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


def read_line(line: bytes, labels: LabelNames) -> tuple[LabelledInput, Truth]:
    """Return a line's input and where its true labels are.

    Raises:
        InvalidJsonError, InvalidRequestError, InvalidInputError: as of a body; fields and messages are of the line.
    """
    if not line.strip():
        raise InvalidJsonError("it is empty: each line is one JSON object")
    try:
        item = LabelledInput.model_validate(parse_json(line))
    except InvalidJsonError as error:
        raise InvalidJsonError(str(error).replace("the body", "it", 1)) from None
    except ValidationError as error:
        # The first problem only, by place and kind, as of a body: never what was sent.
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{field[:200] or 'the object'}: {first['msg']}", field=field or None) from None
    return item, labels.truth(item.label, item.template_fields)


class Upload:
    """Writes an upload's lines into a new file. Blocks, and is for one thread at a time.

    Memory is that of one chunk and one line, and 16 bytes for each id, which must not come twice.

    Args:
        tokens_of: returns an input's tokens, of all the prompts that are made of it, or raises what is wrong with it.
        labels: the artifact's.
    """

    def __init__(self, path: Path, settings: Settings, tokens_of: Callable[[dict[str, Any]], int], labels: LabelNames):
        self._settings, self._tokens_of, self._labels = settings, tokens_of, labels
        #: What has come of a line that is not whole.
        self._begun = bytearray()
        self._ids: set[bytes] = set()
        self.rows = 0
        self.tokens = 0
        with storage_errors():
            self._descriptor = private_file(path)

    def feed(self, chunk: bytes) -> None:
        """Check and write the lines that are whole with this chunk.

        Raises:
            BodyTooLargeError, BatchTooLargeError: more bytes of a line, or more lines, than the settings allow.
            LaploraError: a line that POST /evaluate would refuse as an input; the field names it.
        """
        lines: list[bytes] = []
        self._begun += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(self._begun).split(b"\n")
            self._begun = bytearray(rest)
        limit = self._settings.max_body_bytes
        for number, size in enumerate([*map(len, lines), len(self._begun)], self.rows + 1):
            if size > limit:
                raise BodyTooLargeError(
                    f"line {number} has at least {size} bytes, max_body_bytes is {limit} of one line",
                    field=f"lines.{number}",
                    limit=limit,
                    got=size,
                )
        self._take(lines)

    def finish(self) -> None:
        """Write the last line and bring the file to disk; errors as of ``feed``, InvalidRequestError for no line."""
        self._take([bytes(self._begun)] if self._begun.strip() else [])
        if self.rows == 0:
            raise InvalidRequestError("the upload is empty: send one labelled input a line", field="lines")
        with storage_errors():
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _take(self, lines: Sequence[bytes]) -> None:
        got, limit = self.rows + len(lines), self._settings.max_job_rows
        if got > limit:
            raise BatchTooLargeError(
                f"the upload has at least {got} lines, max_job_rows is {limit}: send it in parts",
                field="lines",
                limit=limit,
                got=got,
            )
        for line in lines:
            try:
                self._check(line)
            except LaploraError as error:
                raise _located(error, self.rows + 1) from None
            self.rows += 1
        left = memoryview(b"".join(line + b"\n" for line in lines))
        with storage_errors():
            while left:
                left = left[os.write(self._descriptor, left) :]

    def _check(self, line: bytes) -> None:
        item, _ = read_line(line, self._labels)
        if item.id is not None:
            digest = blake2b(item.id.encode(), digest_size=16).digest()
            if digest in self._ids:
                raise InvalidRequestError(
                    "an earlier line has the same id: make ids unique or leave them out", field="id"
                )
            self._ids.add(digest)
        self.tokens += self._tokens_of(item.template_fields)


def _located(error: LaploraError, number: int) -> LaploraError:
    """Return the error of a line, its field and its message now the upload's; lines count from 1."""
    field = getattr(error, "field", None)
    error.args = (f"line {number}: {error}",)
    error.field = f"lines.{number}.{field}" if field and field != "body" else f"lines.{number}"  # type: ignore[attr-defined]
    return error
