"""What is read of one large evaluation: its events, its rows with their answers, and figures by a column."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.http.disconnects import while_awaited
from service.http.openapi import JOB_ERRORS, error_responses
from service.http.routes.dependencies import (
    CallerDep,
    DownloadsDep,
    EventStreamsDep,
    FigureThreadsDep,
    JobFiguresDep,
    JobsDep,
    SettingsDep,
)
from service.http.schemas.jobs import JobSlices
from service.jobs.answered import check_kept
from service.jobs.events import events
from service.jobs.slices import MOST_VALUES, slices
from service.jobs.tables_out import MEDIA_TYPES, Format, written
from service.telemetry.logs import logger

router = APIRouter(tags=["jobs"])

_STREAM_ERRORS = ("too_many_requests", "client_too_many_requests")
_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {"id": {"type": "string"}, "data": {"type": "string", "description": "A job, as JSON."}},
}
_ROW = {
    "type": "object",
    "description": "One line of the answer: one row of the upload.",
    "properties": {
        "line": {"type": "integer", "description": "Number of the line, from 1."},
        "input": {"type": "object", "description": "The row as it was uploaded, with every column."},
        "answer": {
            "type": ["object", "null"],
            "description": "As of POST /predict, without id, logits and calibrated_probs; null where there is none.",
        },
        "error": {"type": ["string", "null"], "description": "The code of why there is none; null where there is."},
    },
}


class _Stream(StreamingResponse):
    """A stream that says when it is over, however it ends. After ``timeout_s`` it is cut off: its end is missing."""

    def __init__(
        self,
        parts: AsyncGenerator[bytes],
        on_end: Callable[[], None],
        media_type: str,
        headers: dict[str, str],
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(parts, media_type=media_type, headers={"Cache-Control": "no-store", **headers})
        self._parts, self._on_end, self._timeout_s = parts, on_end, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._parts), asyncio.timeout(self._timeout_s):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning("a download took too long and was cut off", extra={"event": "download_cut_off"})
        finally:
            self._on_end()


@router.get(
    "/evaluate/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events; the data of each is a job as of GET, without its result.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        **error_responses(*JOB_ERRORS, *_STREAM_ERRORS, "invalid_request"),
    },
)
async def job_events(
    job_id: str,
    caller: CallerDep,
    board: JobsDep,
    streams: EventStreamsDep,
    last_event_id: Annotated[
        str | None, Header(description="The last event that was read: those after it follow, as far as they are kept.")
    ] = None,
    after: Annotated[
        int | None, Query(ge=0, le=2**31 - 1, description="The same for whoever can send no header; 0: from the first.")
    ] = None,
) -> StreamingResponse:
    """Follow a job: its state now, then an event for each change, until it has ended or the server stops.

    Ids are numbers from 1 and the same on every server, across restarts: with the header, or `after`, every event
    after that one comes, of the 500 newest. A comment every 15 s keeps the connection.
    """
    await board.fresh()
    job, reader = board.job(job_id, caller.sees), caller.name
    known = last_event_id if last_event_id and last_event_id.isascii() and last_event_id.isdigit() else None
    seen = int(known[:18]) if known is not None else after
    streams.add(reader, 1)
    parts = events(board, job, seen, reader)
    return _Stream(parts, lambda: streams.remove(reader, 1), "text/event-stream", {"X-Accel-Buffering": "no"})


@router.get(
    "/evaluate/jobs/{job_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The rows that are over, in the order of the upload.",
            "content": {
                MEDIA_TYPES["jsonl"]: {"schema": _ROW},
                MEDIA_TYPES["parquet"]: {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **error_responses(*JOB_ERRORS, *_STREAM_ERRORS, "rows_not_kept", "invalid_request", "storage_full"),
    },
)
async def job_results(
    job_id: str,
    caller: CallerDep,
    board: JobsDep,
    downloads: DownloadsDep,
    settings: SettingsDep,
    format: Annotated[
        Format, Query(description="JSON Lines, or a Parquet table with a column for each field.")
    ] = "jsonl",
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="Number of a line: the answer begins with the one after it.")
    ] = 0,
) -> StreamingResponse:
    """Download every row of a job with its answer, and the upload's own columns beside it.

    Of a job that has not ended, the rows so far. A download that broke off goes on with `after`, the last `line` that
    came. A table has the upload's columns under their names, and those of the answer as `answer_...`.
    """
    await board.fresh()
    job, reader = board.job(job_id, caller.sees), caller.name
    check_kept(job)
    downloads.add(reader, 1)
    name = f"{job.id}.{format}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    parts = written(board.ledger.disk, job, format, first=after)
    on_end, timeout_s = partial(downloads.remove, reader, 1), settings.job_download_timeout_s
    return _Stream(parts, on_end, MEDIA_TYPES[format], headers, timeout_s=timeout_s)


@router.get(
    "/evaluate/jobs/{job_id}/slices",
    responses=error_responses(
        *JOB_ERRORS,
        *_STREAM_ERRORS,
        "rows_not_kept",
        "invalid_request",
        "too_many_values",
        "storage_full",
        "upload_changed",
    ),
)
async def job_slices(
    job_id: str,
    caller: CallerDep,
    board: JobsDep,
    figures: JobFiguresDep,
    threads: FigureThreadsDep,
    request: Request,
    settings: SettingsDep,
    by: Annotated[str, Query(max_length=256, description="Name of a column of the upload.")],
    most: Annotated[
        int, Query(ge=1, le=MOST_VALUES, description="Most values told of; the others come together.")
    ] = 50,
) -> JobSlices:
    """Figures of a job by the values of one column of its upload, with the number of rows behind each.

    Of a job that has not ended, of the rows so far. A column of more than 1,000 values is refused.
    """
    await board.fresh()
    job = board.job(job_id, caller.sees)
    figures.add(caller.name, 1)
    try:
        work = slices(board.ledger.disk, job, by, most=most, run=partial(threads.run, caller.name))
        found = await while_awaited(request, work, timeout_s=settings.request_timeout_s)
        return JobSlices.model_validate(found)
    finally:
        figures.remove(caller.name, 1)
