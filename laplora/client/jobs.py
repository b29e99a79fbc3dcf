"""Large evaluations: their uploads, from an iterable or a file, and their states."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from laplora.client.answers import Artifact, Evaluated, Record
from laplora.client.failures import DETAILS, JobFailedError
from laplora.client.requests import checked

Inputs = Iterable[Mapping[str, Any]] | str | os.PathLike[str]
PATH = "/evaluate/jobs"
FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0


class BadRow(Record):
    """A line of an upload, from 1, that could not be scored, and the code of its error."""

    line: int
    code: str


class Job(Record):
    """A large evaluation.

    Attributes:
        rows_done: finished rows; rows_bad: those of them that could not be scored.
        bad_rows: the latter, each with its error; None in lists, and in answers to an upload or a cancel.
        rows_per_second: over the last seconds; None while the job does not run.
        partial: accuracy, NLL (nats) and ECE of the finished rows, by predictive.
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


def outcome_of(job: Job) -> Evaluated:
    """Return the metrics of a finished job, with a warning of rows that were not scored, or raise JobFailedError."""
    if job.result is not None:
        if job.rows_bad:
            warnings.warn(
                f"{job.rows_bad} of {job.rows} rows of job {job.id} could not be scored and are no part of its "
                "metrics: its bad_rows name them",
                stacklevel=3,
            )
        return job.result
    error = job.error or {"code": "cancelled", "message": "it was cancelled"}
    raise JobFailedError(f"job {job.id}: {error['message']}", **{name: error.get(name) for name in DETAILS})


def path_of(job: Job | str) -> str:
    """Return where a job is."""
    return f"{PATH}/{quote(job if isinstance(job, str) else job.id, safe='')}"


def upload_headers(idempotency_key: str | None) -> dict[str, str]:
    """Return an upload's headers, with a new key where the caller gives none: a retry then makes no second job."""
    return {"content-type": "application/jsonl", "idempotency-key": idempotency_key or uuid.uuid4().hex}


@contextmanager
def upload_file(inputs: Inputs) -> Iterator[Path]:
    """Yield the file of an upload, which can be sent again: the named one, or a temporary one of checked inputs."""
    if isinstance(inputs, str | os.PathLike):
        yield Path(inputs)
        return
    with tempfile.TemporaryDirectory(prefix="laplora-") as folder:
        path = Path(folder) / "upload.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in checked(inputs):
                file.write(json.dumps(dict(row), allow_nan=False) + "\n")
        yield path
