"""Large evaluations: POST and GET /evaluate/jobs, and GET, DELETE, cancel and the events of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from laplora.errors import LaploraError
from service.artifacts.host import ArtifactHost
from service.errors import ClientGoneError, DeadlineError
from service.http.body import announced_bytes, check_media_type, discard
from service.http.openapi import BODY_ERRORS, JOB_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import ArtifactsDep, CallerDep, EventStreamsDep, JobsDep, SettingsDep
from service.http.schemas.jobs import JobDeleted, JobOut, JobQuery, JobsResponse
from service.jobs.board import JobBoard
from service.jobs.records import Job
from service.jobs.shown import events, job_out
from service.jobs.upload import IdleUploadError, steadily
from service.scoring.labels import LabelNames
from service.security.callers import Caller
from service.settings import Settings
from service.telemetry.request_record import note

if TYPE_CHECKING:
    from laplora.predictor import Predictor

router = APIRouter(tags=["jobs"])


class _EventStream(StreamingResponse):
    """A stream of server-sent events that says when it is over, however it ends."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


_UPLOAD_ERRORS = (
    *BODY_ERRORS,
    *STATE_ERRORS,
    "artifact_not_loaded",
    "artifact_not_found",
    "batch_too_large",
    "idempotency_conflict",
    "invalid_input",
    "jobs_unavailable",
    "storage_full",
    "too_many_jobs",
    "too_many_tokens",
)
MEDIA_TYPES = ("application/jsonl", "application/x-ndjson")
#: What is still sent of a refused upload is read for so long, so that the client reads why instead of a reset.
_DISCARD_S = 20.0
_EXAMPLE = '{"text": "a gripping film .", "label": "positive"}\n{"text": "dull .", "label": "negative"}\n'
_LINE = "One labelled input of POST /evaluate a line, as a JSON object."
_LINES: dict[str, Any] = {
    "schema": {"type": "string", "format": "binary", "description": _LINE},
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
    responses={202: {"headers": _LOCATION}, **error_responses(*_UPLOAD_ERRORS)},
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(MEDIA_TYPES, _LINES)}},
)
async def submit_job(
    query: Annotated[JobQuery, Query()],
    request: Request,
    response: Response,
    caller: CallerDep,
    settings: SettingsDep,
    artifacts: ArtifactsDep,
    jobs: JobsDep,
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
    try:
        job = await _submitted(request, query, caller.name, idempotency_key, settings, artifacts, jobs)
    except LaploraError as error:
        # Who sends nothing need not be heard out.
        if not isinstance(error, IdleUploadError) and "expect" not in request.headers:
            await _discard_rest(request, settings.max_job_bytes)
        raise
    response.headers["Location"] = f"/evaluate/jobs/{job.id}"
    note(request, job=job.id, rows=job.about.rows, tokens=job.about.tokens)
    _told(caller, job)
    return job_out(job)


async def _submitted(
    request: Request,
    query: JobQuery,
    owner: str,
    key: str | None,
    settings: Settings,
    artifacts: ArtifactHost,
    jobs: JobBoard,
) -> Job:
    check_media_type(request.headers, MEDIA_TYPES)
    announced = announced_bytes(request.headers)
    jobs.quota.check_size(announced)
    known = jobs.known(owner, key, query.artifact, query.options, announced_bytes=announced)
    if known is not None:
        await _discard_rest(request, settings.max_job_bytes)
        return known
    try:
        async with (
            artifacts.lease(query.artifact) as predictor,
            asyncio.timeout(settings.job_upload_timeout_s),
            aclosing(request.stream()) as body,
        ):
            # Once more: while the artifact was looked up, others may have come.
            known = jobs.known(owner, key, query.artifact, query.options, announced_bytes=announced)
            if known is not None:
                return known
            return await jobs.take(
                steadily(body, settings.job_upload_idle_s),
                owner=owner,
                key=key,
                artifact=artifact_ref(predictor.artifact),
                labels=LabelNames.of(predictor.artifact.manifest),
                options=query.options,
                tokens_of=lambda fields: _tokens_of(predictor, fields, query),
            )
    except TimeoutError:
        raise DeadlineError("the upload took longer than job_upload_timeout_s: send it in parts") from None
    except ClientDisconnect:
        raise ClientGoneError("the client closed its connection while sending the upload") from None


def _tokens_of(predictor: Predictor, fields: dict[str, Any], query: JobQuery) -> int:
    if query.order_average:
        return sum(
            len(row.token_ids)
            for row in predictor.encode_orders(fields, truncate=query.truncate, which=query.order_average).rows
        )
    return len(predictor.encode(fields, truncate=query.truncate).token_ids)


async def _discard_rest(request: Request, limit: int) -> None:
    try:
        await discard(request.stream(), limit, timeout_s=_DISCARD_S)
    except (ClientDisconnect, RuntimeError):
        return


@router.get("/evaluate/jobs", responses=error_responses("jobs_unavailable"))
async def list_jobs(caller: CallerDep, board: JobsDep) -> JobsResponse:
    """Your jobs, without their results; everybody's with the scope admin."""
    jobs = board.jobs_of(caller.sees)
    _told(caller, *jobs)
    return JobsResponse(jobs=[job_out(job) for job in jobs])


@router.get("/evaluate/jobs/{job_id}", responses=error_responses(*JOB_ERRORS))
async def get_job(job_id: str, caller: CallerDep, board: JobsDep) -> JobOut:
    """How far a job is, its metrics so far, and its result once it is done."""
    job = board.job(job_id, caller.sees)
    bad_rows = await board.ledger.bad_rows(job)
    result = await board.ledger.result(job)
    _told(caller, job)
    return job_out(job, result=result, bad_rows=bad_rows)


@router.post("/evaluate/jobs/{job_id}/cancel", responses=error_responses(*JOB_ERRORS, "storage_full"))
async def cancel_job(job_id: str, caller: CallerDep, board: JobsDep) -> JobOut:
    """Cancel a job: nothing more of it runs, and it stays listed. One that has ended stays as it is.

    So a cancel that comes late, or twice, destroys nothing: `status` of the answer says what became of the job.
    """
    job = board.job(job_id, caller.sees)
    await board.cancel(job)
    _told(caller, job)
    return job_out(job)


@router.delete("/evaluate/jobs/{job_id}", responses=error_responses(*JOB_ERRORS, "storage_full"))
async def delete_job(job_id: str, caller: CallerDep, board: JobsDep) -> JobDeleted:
    """Remove a job that has ended, with its result. One that has not is cancelled, and stays listed.

    A job that ended before you were told so is kept, once: a DELETE that was meant to cancel it takes no result away.
    """
    job = board.job(job_id, caller.sees)
    if job.finished and caller.name in job.told:
        await board.ledger.remove([job])
        return JobDeleted(id=job.id, outcome="removed")
    await board.cancel(job)
    _told(caller, job)
    return JobDeleted(id=job.id, outcome="cancelled" if job.status == "cancelled" else "kept")


@router.get(
    "/evaluate/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events; the data of each is a job as of GET, without its result.",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        **error_responses(*JOB_ERRORS, "too_many_requests", "client_too_many_requests"),
    },
)
async def job_events(
    job_id: str,
    caller: CallerDep,
    board: JobsDep,
    streams: EventStreamsDep,
    last_event_id: Annotated[
        str | None, Header(description="The last event that was read: its state is not sent again.")
    ] = None,
) -> StreamingResponse:
    """Follow a job: its state now, then an event for each change, until it has ended or the server stops.

    Who reads slower than the job changes gets the newest state each time. A comment every 15 s keeps the connection.
    """
    job, reader = board.job(job_id, caller.sees), caller.name
    streams.add(reader, 1)
    return _EventStream(events(board, job, last_event_id, reader), on_end=lambda: streams.remove(reader, 1))


def _told(caller: Caller, *jobs: Job) -> None:
    """Note that the caller is told how these jobs are: of one that has ended, that a DELETE means to remove it."""
    for job in jobs:
        if job.finished:
            job.told.add(caller.name)
