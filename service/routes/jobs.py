"""Large evaluations: POST and GET /evaluate/jobs, and GET, DELETE and the events of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from laplora.errors import LaploraError
from service.body import announced_bytes, check_media_type, discard
from service.callers import caller_of
from service.errors import ClientGoneError, DeadlineError
from service.jobs.board import JobBoard
from service.jobs.records import Job
from service.jobs.upload import too_many_bytes
from service.openapi import JOB_ERRORS, JOBS_ERRORS, UPLOAD_ERRORS, error_responses
from service.request_record import note
from service.routes.artifacts import artifact_ref
from service.schemas import JobDeleted, JobOut, JobPause, JobQuery, JobResult, JobsResponse, PartialMetrics
from service.scoring import ServiceState, lease

if TYPE_CHECKING:
    from laplora.predictor import Predictor

router = APIRouter(tags=["jobs"])

MEDIA_TYPES = ("application/jsonl", "application/x-ndjson")
#: What is still sent of a refused upload is read for so long, so that the client reads why instead of a reset.
_DISCARD_S = 20.0
_HEARTBEAT_S = 15.0
_EXAMPLE = '{"text": "a gripping film .", "label": "positive"}\n{"text": "dull .", "label": "negative"}\n'
_LINES: dict[str, Any] = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "One labelled input of POST /evaluate a line, as a JSON object.",
    },
    "examples": {"two lines": {"value": _EXAMPLE}},
}
_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {"id": {"type": "string"}, "data": {"type": "string", "description": "A job, as JSON."}},
}
_LOCATION = {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}}


@router.post(
    "/evaluate/jobs",
    status_code=202,
    responses={202: {"headers": _LOCATION}, **error_responses(*UPLOAD_ERRORS)},
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(MEDIA_TYPES, _LINES)}},
)
async def submit_job(
    query: Annotated[JobQuery, Query()],
    request: Request,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[!-~]+$",
            description="Of your choice: the same key again gives the same job, for as long as it is kept.",
        ),
    ] = None,
) -> JobOut:
    """Evaluate more inputs than one request may bring, in the background: one labelled input a line (JSON Lines).

    Every line is checked before this answers: what is wrong with one is refused with `field` `lines.N...`, N from 1,
    and nothing is kept. The prompts are on the server's disk until the job has ended, the result until `job_keep_s`
    after that or DELETE.
    """
    state: ServiceState = request.app.state.service
    try:
        job = await _submitted(state, request, query, idempotency_key)
    except LaploraError:
        if "expect" not in request.headers:
            await _discard_rest(request, state.settings.max_job_bytes)
        raise
    response.headers["Location"] = f"/evaluate/jobs/{job.id}"
    note(request, job=job.id, rows=job.about.rows, tokens=job.about.tokens)
    return job_out(job)


async def _submitted(state: ServiceState, request: Request, query: JobQuery, key: str | None) -> Job:
    settings, owner = state.settings, caller_of(request).name
    check_media_type(request.headers, MEDIA_TYPES)
    announced = announced_bytes(request.headers)
    if announced > settings.max_job_bytes:
        raise too_many_bytes(settings.max_job_bytes, announced)
    known = state.jobs.known(owner, key, query.artifact, query.options)
    if known is not None:
        await _discard_rest(request, settings.max_job_bytes)
        return known
    try:
        with lease(state, query.artifact) as predictor:
            async with asyncio.timeout(settings.job_upload_timeout_s), aclosing(request.stream()) as body:
                return await state.jobs.take(
                    body,
                    owner=owner,
                    key=key,
                    artifact=artifact_ref(predictor.artifact),
                    labels=predictor.artifact.manifest.labels,
                    options=query.options,
                    tokens_of=lambda fields: _tokens_of(predictor, fields, query),
                )
    except TimeoutError:
        raise DeadlineError("the upload took longer than job_upload_timeout_s: send it in parts") from None
    except ClientDisconnect:
        raise ClientGoneError("the client closed its connection while sending the upload") from None


def _tokens_of(predictor: Predictor, fields: dict[str, Any], query: JobQuery) -> int:
    if query.order_average:
        return sum(len(row.token_ids) for row in predictor.encode_orders(fields, truncate=query.truncate).rows)
    return len(predictor.encode(fields, truncate=query.truncate).token_ids)


async def _discard_rest(request: Request, limit: int) -> None:
    try:
        await discard(request.stream(), limit, timeout_s=_DISCARD_S)
    except (ClientDisconnect, RuntimeError):
        return


@router.get("/evaluate/jobs", responses=error_responses(*JOBS_ERRORS))
async def list_jobs(request: Request) -> JobsResponse:
    """Your jobs, without their results; everybody's with the scope admin."""
    board, owner = _board(request), _whose(request)
    return JobsResponse(jobs=[job_out(job) for job in board.jobs_of(owner)])


@router.get("/evaluate/jobs/{job_id}", responses=error_responses(*JOB_ERRORS))
async def get_job(job_id: str, request: Request) -> JobOut:
    """How far a job is, its metrics so far, and its result once it is done."""
    board = _board(request)
    job = board.job(job_id, _whose(request))
    return job_out(job, await board.result(job))


@router.delete("/evaluate/jobs/{job_id}", responses=error_responses(*JOB_ERRORS, "storage_full"))
async def delete_job(job_id: str, request: Request) -> JobDeleted:
    """Cancel a job that has not ended: nothing more of it runs. Remove one that has."""
    board = _board(request)
    job = board.job(job_id, _whose(request))
    if job.finished:
        await board.remove([job])
        return JobDeleted(id=job.id, outcome="removed")
    await board.cancel(job)
    return JobDeleted(id=job.id, outcome="cancelled")


@router.get(
    "/evaluate/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events; the data of each is a job as of GET, without its result.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        **error_responses(*JOB_ERRORS),
    },
)
async def job_events(
    job_id: str,
    request: Request,
    last_event_id: Annotated[
        str | None, Header(description="The last event that was read: its state is not sent again.")
    ] = None,
) -> StreamingResponse:
    """Follow a job: its state now, then an event for each change, until it has ended or the server stops.

    Who reads slower than the job changes gets the newest state each time. A comment every 15 s keeps the connection.
    """
    board = _board(request)
    job = board.job(job_id, _whose(request))
    return StreamingResponse(
        _events(board, job, last_event_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(board: JobBoard, job: Job, seen: str | None) -> AsyncIterator[str]:
    # At once, so that the headers reach a client that waits for the first byte.
    yield "retry: 2000\n\n"
    while True:
        changed, event_id = job.changed, f"{board.boot}-{job.changes}"
        if event_id != seen:
            seen = event_id
            yield f"id: {event_id}\ndata: {job_out(job).model_dump_json()}\n\n"
            if job.finished:
                return
        if board.draining and job.status not in ("running", "paused"):
            return
        try:
            async with asyncio.timeout(_HEARTBEAT_S):
                await changed.wait()
        except TimeoutError:
            yield ": the job goes on\n\n"


def job_out(job: Job, result: str | None = None) -> JobOut:
    """Return a job as the contract writes it.

    Args:
        result: JSON.
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
            "rows_per_second": job.rows_per_second,
            "partial": partial and {name: PartialMetrics.model_validate(found) for name, found in partial.items()},
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


def _board(request: Request) -> JobBoard:
    state: ServiceState = request.app.state.service
    return state.jobs


def _whose(request: Request) -> str | None:
    """Return whose jobs the caller may see; None for everybody's."""
    caller = caller_of(request)
    return None if "admin" in caller.scopes else caller.name
