"""A job as the contract writes it, and the stream of its events.

An event is made once, by the first reader that wants it, and every reader of the job gets the same bytes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from service.http.schemas.jobs import JobOut, JobResult
from service.jobs.board import JobBoard
from service.jobs.records import Job

_HEARTBEAT_S = 15.0
_OPENING = b"retry: 2000\n\n"
_HEARTBEAT = b": the job goes on\n\n"


def job_out(job: Job, *, result: str | None = None, bad_rows: Sequence[tuple[int, str]] | None = None) -> JobOut:
    """Return a job as the contract writes it.

    Args:
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
            "rows_done": job.rows_done,
            "rows_bad": job.rows_bad,
            "rows_per_second": job.rows_per_second,
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


def _result(kept: str) -> JobResult:
    """Return a result from the disk. One that an earlier version of the server wrote has no share of flagged rows."""
    return JobResult.model_validate({"unfamiliar": None, **json.loads(kept)})


async def events(board: JobBoard, job: Job, seen: str | None, reader: str) -> AsyncIterator[bytes]:
    """Yield a job's events, as of server-sent events: its state now, then each change, until it has ended.

    Args:
        seen: id of the last event that the reader has: its state is not sent again.
        reader: name of the caller that reads.
    """
    # At once, so that the headers reach a client that waits for the first byte.
    yield _OPENING
    while True:
        changed, event_id = job.changed, f"{board.boot}-{job.changes}"
        if event_id != seen:
            seen = event_id
            if job.finished:
                job.told.add(reader)
            if job.event[0] != job.changes:
                job.event = (job.changes, f"id: {event_id}\ndata: {job_out(job).model_dump_json()}\n\n".encode())
            yield job.event[1]
            continue  # what changed while that was sent comes before any end
        if job.finished or (board.draining and job.status not in ("running", "paused")):
            return
        try:
            async with asyncio.timeout(_HEARTBEAT_S):
                await changed.wait()
        except TimeoutError:
            yield _HEARTBEAT
