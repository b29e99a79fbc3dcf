"""A job as the contract writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from service.http.schemas.jobs import JobOut, JobResult
from service.jobs.records import Job


def job_out(
    job: Job, *, whole: bool = False, result: str | None = None, bad_rows: Sequence[tuple[int, str]] | None = None
) -> JobOut:
    """Return a job as the contract writes it.

    Args:
        whole: with the names of its columns, which may be long.
        result: JSON.
        bad_rows: numbers, from 0, of the rows that could not be scored, and the codes of why.
    """
    about = job.about
    return JobOut.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "owner": job.owner,
            "artifact": about.artifact,
            "options": about.options,
            "rows": about.rows,
            "columns": list(about.columns) if whole else None,
            "keep_rows": about.keep_rows,
            "rows_done": job.rows_done,
            "rows_bad": job.rows_bad,
            "rows_per_second": job.rows_per_second,
            "seconds_left": job.seconds_left,
            "partial": job.sums.metrics(),
            "bad_rows": None if bad_rows is None else [{"line": row + 1, "code": code} for row, code in bad_rows],
            "paused": job.paused,
            "error": job.error,
            "created_at": about.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
            "result": None if result is None else _result(result),
        }
    )


def event_of(job: Job) -> str:
    """Return a job as the data of an event, JSON: without its result, its bad rows and its columns."""
    return job_out(job).model_dump_json()


def _result(kept: str) -> JobResult:
    """Return a result from the disk. One that an earlier version of the server wrote has no share of flagged rows."""
    return JobResult.model_validate({"unfamiliar": None, **json.loads(kept)})
