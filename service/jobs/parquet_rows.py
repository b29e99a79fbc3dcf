"""The rows of an uploaded Parquet file, as JSON lines, read by a process of bounded memory (``parquet_child``)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from service.errors import ClientGoneError, DeadlineError, InvalidRequestError
from service.jobs import parquet_child

#: What a file's pages may need beside the interpreter.
MEMORY_BYTES = 2**30
#: Of the server's environment, all that the process is given: there may be passwords in the rest.
_ENVIRONMENT = ("LD_LIBRARY_PATH",)
#: Longer than what the process says of a file that it refuses.
_REASON_BYTES = 4096


class ParquetRows:
    """The rows of a file as JSON objects, each no longer than a byte above ``most_line_bytes``; iterated once, blocks.

    Raises, as it is iterated:
        InvalidRequestError: it is damaged, has nested columns, two of one name, more rows than ``most_rows``, or pages
            that are too large to unpack; its field is the column at fault.
        DeadlineError: it took longer than ``timeout_s``.
        ClientGoneError: it was stopped.
    """

    def __init__(self, path: Path, *, most_rows: int, most_line_bytes: int, timeout_s: float) -> None:
        limits = map(str, (MEMORY_BYTES, most_rows, math.ceil(timeout_s)))
        self._command = [sys.executable, "-I", str(Path(parquet_child.__file__)), str(path), *limits]
        self._most_line_bytes, self._timeout_s = max(most_line_bytes, _REASON_BYTES), timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def stop(self) -> None:
        """End the process, from whatever thread: nothing more is read."""
        self._stopped = True
        if self._child is not None:
            self._child.kill()

    def __iter__(self) -> Iterator[bytes]:
        """Start the process and yield what it writes."""
        end = time.monotonic() + self._timeout_s
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        with subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # Nobody reads it while rows come: a process that writes much there would wait for ever.
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as child:
            self._child = child
            # A process that writes nothing is ended too.
            timer = threading.Timer(self._timeout_s, child.kill)
            timer.daemon = True
            timer.start()
            if self._stopped:
                child.kill()
            try:
                assert child.stdout is not None
                while line := child.stdout.readline(self._most_line_bytes + 2):
                    self._check(end)
                    if line.startswith(b"["):
                        raise _refused(line)
                    if not line.endswith(b"\n"):
                        if len(line) > self._most_line_bytes:
                            yield line
                            return
                        break  # the process ended in the middle of it
                    yield line[:-1]
                self._check(end)
                if child.wait() != 0:
                    self._check(end)
                    raise _refused(b"")
            finally:
                timer.cancel()
                child.kill()

    def _check(self, end: float) -> None:
        if self._stopped:
            raise ClientGoneError("the upload was given up while its rows were read")
        if time.monotonic() > end:
            raise DeadlineError("the upload took longer than job_upload_timeout_s: send it in parts")


def _refused(said: bytes) -> InvalidRequestError:
    """Return the error that a process told of, or that its end tells of: it was killed for its memory."""
    try:
        message, column = json.loads(said)
        return InvalidRequestError(f"the Parquet file: {message}", field=column or "lines")
    except ValueError:
        message = "the Parquet file: it could not be unpacked in bounded memory: write it with smaller pages"
        return InvalidRequestError(message, field="lines")
