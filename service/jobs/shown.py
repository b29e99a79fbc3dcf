"""A job as the contract writes it, and the stream of its events.

An event is made once, by the first reader that wants it, and every reader of the job gets the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from service.http.schemas.evaluate import PartialMetrics
from service.http.schemas.jobs import BadRow, JobOut, JobPause, JobResult
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
    partial = job.sums.metrics()
    return JobOut.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "owner": job.owner,
            "artifact": job.about.artifact,
            "options": job.about.options,
            "rows": job.about.rows,
            "rows_done": job.rows_done,
            "rows_bad": job.rows_bad,
            "rows_per_second": job.rows_per_second,
            "partial": partial and {name: PartialMetrics(**metrics) for name, metrics in partial.items()},
            "bad_rows": None if bad_rows is None else [BadRow(line=row + 1, code=code) for row, code in bad_rows],
            "paused": job.paused and JobPause.model_validate(job.paused),
            "error": job.error,
            "created_at": _time(job.about.created_at),
            "started_at": _time(job.started_at),
            "finished_at": _time(job.finished_at),
            "result": None if result is None else JobResult.model_validate_json(result),
        }
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


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
            yield newest(board, job)
            continue  # what changed while that was sent comes before any end
        if job.finished or (board.draining and job.status not in ("running", "paused")):
            return
        try:
            async with asyncio.timeout(_HEARTBEAT_S):
                await changed.wait()
        except TimeoutError:
            yield _HEARTBEAT


def newest(board: JobBoard, job: Job) -> bytes:
    """Return the event of a job's newest change, made at the first call after it."""
    if job.event[0] != job.changes:
        text = f"id: {board.boot}-{job.changes}\ndata: {job_out(job).model_dump_json()}\n\n"
        job.event = (job.changes, text.encode())
    return job.event[1]
