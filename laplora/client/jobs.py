"""Large files of inputs: their uploads, from an iterable or a file, and their states."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import ValidationError

from laplora.client.answers import Artifact, Evaluated, Record
from laplora.client.failures import (
    DETAILS,
    JobFailedError,
    ServiceFailedError,
    ServiceUnreachableError,
)
from laplora.client.requests import checked
from laplora.errors import warn

Inputs = Iterable[Mapping[str, Any]] | str | os.PathLike[str]
PATH = "/evaluate/jobs"
FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0


class BadRow(Record):
    """A line of an upload, from 1, that could not be scored, and the code of its error."""

    line: int
    code: str


class JobAnswers(Record):
    """A summary of a job's answers, with labels or without.

    Attributes:
        rows: that have an answer; decisions, set_sizes: of these, by decision and by labels in the prediction set.
        unfamiliar: share that is flagged so; None where the artifact does not tell.
        uncertainty: means of its parts, nats; None where there is none.
    """

    rows: int
    decisions: dict[str, int]
    set_sizes: dict[int, int]
    unfamiliar: float | None
    uncertainty: dict[str, float] | None


class Job(Record):
    """A large file of inputs that is answered, and measured where they have labels.

    Attributes:
        columns: of the upload, None in lists; keep_rows: whether ``job_results`` and ``job_report`` can be had of it.
        seconds_left: until the last row is over, at the speed of late; None without one.
        rows_done: finished rows; rows_bad: those of them that could not be scored.
        bad_rows: the latter, each with its error; None in lists, and in answers to an upload or a cancel.
        rows_per_second: over the last seconds; None while the job does not run.
        rows_labelled: how many rows have a label.
        partial: accuracy, NLL (nats) and ECE of the finished rows with a label, by predictive.
        answered: what the answers say so far; None before the first.
        paused, error: code and message of what it waits for, or failed with.
        result: None until it is done, and in lists.
    """

    id: str
    status: Literal["queued", "running", "paused", "done", "failed", "cancelled"]
    artifact: Artifact
    rows: int
    rows_labelled: int
    rows_done: int
    rows_bad: int = 0
    bad_rows: tuple[BadRow, ...] | None = None
    columns: tuple[str, ...] | None = None
    keep_rows: bool = False
    rows_per_second: float | None = None
    seconds_left: float | None = None
    partial: dict[str, dict[str, float]] | None = None
    answered: JobAnswers | None = None
    paused: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    result: Evaluated | None = None

    @property
    def finished(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.status in ("done", "failed", "cancelled")


class JobRow(Record):
    """One row of a job.

    Attributes:
        line: its number in the upload, from 1.
        input: the row as it was uploaded, with every column.
        answer: as a ``Prediction``, without logits and the other predictives' probabilities; None where there is none.
        error: the code of why; None where there is one.
    """

    line: int
    input: dict[str, Any]
    answer: dict[str, Any] | None
    error: str | None


class JobPage(Record):
    """Some of the caller's jobs, and what ``before`` of the next page is; None on the last."""

    jobs: tuple[Job, ...]
    next: str | None = None


def outcome_of(job: Job) -> Evaluated:
    """Return the metrics of a finished job, with a warning of rows that were not scored, or raise JobFailedError."""
    if job.result is not None:
        if job.rows_bad:
            warn(
                f"{job.rows_bad} of {job.rows} rows of job {job.id} could not be scored and are no part of its "
                "metrics: its bad_rows name them"
            )
        return job.result
    error = job.error or {"code": "cancelled", "message": "it was cancelled"}
    raise JobFailedError(f"job {job.id}: {error['message']}", **{name: error.get(name) for name in DETAILS})


def path_of(job: Job | str) -> str:
    return f"{PATH}/{quote(job if isinstance(job, str) else job.id, safe='')}"


def read_row(line: bytes) -> JobRow:
    """Return a row of a download; ServiceFailedError where it is not the contract's."""
    try:
        return JobRow.model_validate_json(line)
    except ValidationError:
        raise ServiceFailedError("a line of the download is no row of a job", code="not_understood") from None


def restarting(error: ServiceFailedError) -> ServiceFailedError:
    """Return the error of a service that cannot be reached, where a proxy before it had no answer in time (504)."""
    if error.status == 504:
        return ServiceUnreachableError(error.message, status=error.status, code="unreachable")
    return error


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
