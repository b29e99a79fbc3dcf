"""One upload on its way to disk: each line checked as POST /evaluate would check it, written, and forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from laplora.errors import LaploraError
from service.errors import BatchTooLargeError, InvalidRequestError
from service.jobs.disk import private_file, storage_errors
from service.jobs.lines import LineSplitter, located, read_line


@dataclass(frozen=True)
class Limits:
    """Of one upload: lines in all, bytes of one line."""

    max_rows: int
    max_line_bytes: int


class Upload:
    """Writes an upload's lines into a file. Blocks, and is for one thread at a time.

    Memory is that of one chunk and one line, and 16 bytes for each id, which must not come twice.

    Args:
        path: of the file, which must not be there yet.
        tokens_of: returns an input's tokens, of all the prompts that are made of it, or raises what is wrong with it.
        labels: the artifact's, in order.
    """

    def __init__(self, path: Path, limits: Limits, tokens_of: Callable[[dict[str, Any]], int], labels: Sequence[str]):
        self._limits = limits
        self._tokens_of = tokens_of
        self._labels = labels
        self._lines = LineSplitter(limits.max_line_bytes)
        self._ids: set[bytes] = set()
        self.rows = 0
        self.tokens = 0
        with storage_errors():
            self._descriptor = private_file(path)

    def feed(self, chunk: bytes) -> None:
        """Check and write the lines that are whole with this chunk.

        Raises:
            BodyTooLargeError, BatchTooLargeError: more bytes of a line, or more lines, than the limits say.
            LaploraError: a line that POST /evaluate would refuse as an input; the field names it.
            StorageFullError: the disk has no room.
        """
        self._take(self._lines.feed(chunk))

    def finish(self) -> None:
        """Write the last line and bring the file to disk; errors as of ``feed``, InvalidRequestError for no line."""
        self._take(self._lines.end())
        if self.rows == 0:
            raise InvalidRequestError("the upload is empty: send one labelled input a line", field="lines")
        with storage_errors():
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _take(self, lines: Sequence[bytes]) -> None:
        if self.rows + len(lines) > self._limits.max_rows:
            got = self.rows + len(lines)
            raise BatchTooLargeError(
                f"the upload has at least {got} lines, max_job_rows is {self._limits.max_rows}: send it in parts",
                field="lines",
                limit=self._limits.max_rows,
                got=got,
            )
        for line in lines:
            try:
                self._check(line)
            except LaploraError as error:
                raise located(error, self.rows + 1, getattr(error, "field", None)) from None
            self.rows += 1
        left = memoryview(b"".join(line + b"\n" for line in lines))
        with storage_errors():
            while left:
                left = left[os.write(self._descriptor, left) :]

    def _check(self, line: bytes) -> None:
        item, _ = read_line(line, self._labels)
        if item.id is not None:
            known = len(self._ids)
            self._ids.add(blake2b(item.id.encode(), digest_size=16).digest())
            if len(self._ids) == known:
                raise InvalidRequestError(
                    "an earlier line has the same id: make ids unique or leave them out", field="id"
                )
        self.tokens += self._tokens_of(item.template_fields)
