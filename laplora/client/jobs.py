"""Large evaluations: uploads from an iterable or a file, and how far a job is."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

from laplora.client.answers import Artifact, Evaluated, Record
from laplora.client.failures import RequestRefusedError, ServiceFailedError
from laplora.errors import DataError

JobInputs = Iterable[Mapping[str, Any]] | str | os.PathLike[str]
_PATH = "/evaluate/jobs"
_CHUNK_BYTES = 1 << 18
FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0


class BadRow(Record):
    """A line of an upload, from 1, that could not be scored, and the code of why."""

    line: int
    code: str


class Job(Record):
    """A large evaluation.

    Attributes:
        rows_done: rows that are over; rows_bad: those of them that could not be scored.
        bad_rows: which those are; None in lists, and in answers to an upload or a cancel.
        rows_per_second: of late; None while it does not run.
        partial: by predictive accuracy, NLL (nats) and ECE of the rows done.
        paused, error: code and message of what it waits for, or failed with.
        result: None until it is done, and in lists.
    """

    id: str
    status: Literal["queued", "running", "paused", "done", "failed", "cancelled"]
    artifact: Artifact
    rows: int
    rows_done: int
    rows_bad: int = 0
    bad_rows: tuple[BadRow, ...] | None = None
    rows_per_second: float | None = None
    partial: dict[str, dict[str, float]] | None = None
    paused: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    result: Evaluated | None = None

    @property
    def finished(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.status in ("done", "failed", "cancelled")


class JobFailedError(ServiceFailedError):
    """The job that was waited for failed, or was cancelled (code ``cancelled``)."""


class JobListing(Record):
    """The caller's jobs."""

    jobs: tuple[Job, ...]


def outcome_of(job: Job) -> Evaluated:
    """Return the metrics of a finished job; a ``UserWarning`` says how many rows could not be scored.

    Raises:
        JobFailedError: it has none.
    """
    if job.result is not None:
        if job.rows_bad:
            warnings.warn(
                f"{job.rows_bad} of {job.rows} rows of job {job.id} could not be scored and are no part of its "
                "metrics: its bad_rows name them",
                stacklevel=3,
            )
        return job.result
    error = job.error or {"code": "cancelled", "message": "it was cancelled"}
    raise JobFailedError(
        f"job {job.id}: {error['message']}",
        code=error["code"],
        field=error.get("field"),
        limit=error.get("limit"),
        got=error.get("got"),
    )


def path_of(job: Job | str) -> str:
    """Return where a job is."""
    return f"{_PATH}/{quote(job if isinstance(job, str) else job.id, safe='')}"


def cancel_path(job: Job | str) -> str:
    """Return where a job is cancelled."""
    return f"{path_of(job)}/cancel"


def check_ended(job: Job) -> None:
    """Check that a job has ended.

    Raises:
        RequestRefusedError: it has not.
    """
    if not job.finished:
        raise RequestRefusedError(f"job {job.id} is {job.status}: cancel it first", code="job_not_ended")


def query_of(**options: Any) -> str:
    """Return where jobs are uploaded and listed, with the options that are set."""
    stated = {k: str(v).lower() if isinstance(v, bool) else v for k, v in options.items() if v not in (None, False)}
    return f"{_PATH}?{urlencode(stated)}" if stated else _PATH


def upload_headers(idempotency_key: str | None) -> dict[str, str]:
    """Return an upload's headers; where the caller has no key, a new one, so that another try is no other job."""
    return {"content-type": "application/jsonl", "idempotency-key": idempotency_key or uuid.uuid4().hex}


@contextmanager
def upload_file(inputs: JobInputs) -> Iterator[Path]:
    """Yield the file of an upload: the one that was named, or a temporary one, so that it can be sent again.

    Raises:
        DataError: no inputs, or one that is no mapping.
    """
    if isinstance(inputs, str | os.PathLike):
        yield Path(inputs)
        return
    with tempfile.TemporaryDirectory(prefix="laplora-") as folder:
        path = Path(folder) / "upload.jsonl"
        rows = 0
        with path.open("w", encoding="utf-8") as file:
            for rows, row in enumerate(inputs, start=1):
                if not isinstance(row, Mapping):
                    raise DataError(f"input {rows - 1} is {type(row).__name__}: each is a mapping of labelled fields")
                file.write(json.dumps(dict(row), allow_nan=False) + "\n")
        if rows == 0:
            raise DataError("no inputs: a job evaluates one or more")
        yield path


def chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


async def chunks_async(path: Path) -> AsyncIterator[bytes]:
    """Yield a file's bytes; reading 256 KB from a disk holds up an event loop less than a thread's start."""
    for chunk in chunks(path):
        yield chunk
