"""The rows of an uploaded Parquet file, as JSON lines, read by a process of bounded memory (``parquet_child``)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from service.errors import DeadlineError, InvalidRequestError
from service.jobs import parquet_child

#: What a file's pages may need beside the interpreter.
MEMORY_BYTES = 2**30


def parquet_rows(path: Path, *, most_rows: int, most_line_bytes: int, timeout_s: float) -> Iterator[bytes]:
    """Yield a file's rows as JSON objects, each no longer than a byte above ``most_line_bytes``; blocks.

    Raises:
        InvalidRequestError: it is damaged, has nested columns, more rows than ``most_rows``, or pages that are too
            large to unpack; its field is the column at fault.
        DeadlineError: it took longer than ``timeout_s``.
    """
    limits = map(str, (MEMORY_BYTES, most_rows, math.ceil(timeout_s)))
    command = [sys.executable, "-I", str(Path(parquet_child.__file__)), str(path), *limits]
    end = time.monotonic() + timeout_s
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            while line := child.stdout.readline(most_line_bytes + 2):
                if time.monotonic() > end:
                    raise DeadlineError("the upload took longer than job_upload_timeout_s: send it in parts")
                yield line.rstrip(b"\n")
                if not line.endswith(b"\n"):
                    return
            said = child.stderr.read(2**16)
            if child.wait() != 0:
                raise _refused(said)
        finally:
            child.kill()


def _refused(said: bytes) -> InvalidRequestError:
    """Return the error that a process told of, or that its end tells of: it was killed for its memory."""
    try:
        told = json.loads(said.splitlines()[-1])
        return InvalidRequestError(f"the Parquet file: {told['message']}", field=told["column"] or "lines")
    except (IndexError, ValueError, KeyError, TypeError):
        message = "the Parquet file: it could not be unpacked in bounded memory: write it with smaller pages"
        return InvalidRequestError(message, field="lines")
