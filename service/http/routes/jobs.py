"""Large files: POST and GET /evaluate/jobs, and GET, DELETE and cancel of one. Reading one: job_rows."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect

from laplora.answers.labels import LabelNames
from laplora.errors import LaploraError
from laplora.prompts.model_answers import made_up_answer
from laplora.prompts.templates import MODEL_PROBS
from service.artifacts.host import ArtifactHost
from service.errors import ClientGoneError, DeadlineError
from service.http.body import announced_bytes, check_media_type, discard
from service.http.compression import unpacked
from service.http.disconnects import while_awaited
from service.http.openapi import BODY_ERRORS, JOB_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref, given_fields, template_fields
from service.http.routes.dependencies import ArtifactsDep, CallerDep, JobsDep, SettingsDep, idempotency_header
from service.http.routes.job_contract import job_out
from service.http.schemas.jobs import JobDeleted, JobOut, JobQuery, JobsResponse
from service.jobs.board import JobBoard
from service.jobs.intake.upload import IdleUploadError, steadily
from service.jobs.store.records import ArtifactVersion, Job, JobOptions
from service.settings import Settings
from service.telemetry.request_record import note

if TYPE_CHECKING:
    from service.scoring.model import Model

router = APIRouter(tags=["jobs"])


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
LINES_TYPES = ("application/jsonl", "application/x-ndjson")
MEDIA_TYPES = (*LINES_TYPES, "application/octet-stream")
#: The rest of a refused upload is read for so long, so that the client reads the reason instead of a reset.
_DISCARD_S = 20.0
_EXAMPLE = '{"text": "a gripping film .", "label": "positive"}\n{"text": "dull .", "label": "negative"}\n'
_LINE = "One input of POST /evaluate a line, as a JSON object; its label may be left out."
_LINES: dict[str, Any] = {
    "schema": {"type": "string", "format": "binary", "description": _LINE},
    "examples": {"two lines": {"value": _EXAMPLE}},
}
_CONTENT = dict.fromkeys(MEDIA_TYPES, _LINES)
_LOCATION = {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}}


@router.post(
    "/evaluate/jobs",
    status_code=202,
    responses={202: {"headers": _LOCATION}, **error_responses(*_UPLOAD_ERRORS)},
    openapi_extra={"requestBody": {"required": True, "content": _CONTENT}},
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
        idempotency_header("Of your choice: the same key again gives the same job, for as long as it is kept."),
    ] = None,
) -> JobOut:
    """Answer more inputs than one request may bring, in the background, and measure those with a label: JSON Lines.

    One input a line, with or without `label`; further columns are kept beside its answer. Every line is checked first:
    what is wrong with one is refused with `field` `lines.N...`, N from 1, with the first 100 such lines in `lines` and
    their number in `lines_bad`, and nothing is kept. The rows, their answers and the result are on the server's disk
    until `job_keep_s` after the job's end, or DELETE; the rows only until its end with `keep_rows=false`.
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
    return job_out(job, columns=True)


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
    await jobs.fresh()
    options = JobOptions(**query.options.model_dump())
    repeated = partial(jobs.taking.repeated, owner, key, query.artifact, options)
    same = partial(repeated, keep_rows=query.keep_rows, announced_bytes=announced)
    try:
        async with (
            asyncio.timeout(settings.job_upload_timeout_s),
            aclosing(request.stream()) as packed,
            aclosing(unpacked(packed, request.headers, settings.max_job_bytes)) as content,
        ):
            body = steadily(content, settings.job_upload_idle_s)
            if (earlier := same()) is None:
                async with artifacts.lease(query.artifact) as model:
                    # Once more: while the artifact was looked up, others may have come.
                    if (earlier := same()) is None:
                        return await jobs.taking.take(
                            body,
                            owner=owner,
                            key=key,
                            artifact=ArtifactVersion(**artifact_ref(model.artifact).model_dump()),
                            labels=LabelNames.of(model.artifact.manifest),
                            rule=model.artifact.manifest.predictives[model.recommended].thresholds.review,
                            options=options,
                            methods=set(model.predictives),
                            keep_rows=query.keep_rows,
                            template_fields=(*template_fields(model.artifact), *given_fields(model.artifact)),
                            tokens_of=lambda fields: _tokens_of(model, fields, query),
                            awaited=partial(while_awaited, request),
                        )
            await jobs.taking.check_same(earlier, body)
            return earlier
    except TimeoutError:
        raise DeadlineError("the upload took longer than job_upload_timeout_s: send it in parts") from None
    except ClientDisconnect:
        raise ClientGoneError("the client closed its connection while sending the upload") from None


def _tokens_of(model: Model, fields: dict[str, Any], query: JobQuery) -> int:
    if given_fields(model.artifact) and MODEL_PROBS not in fields:  # the other model is asked when the job runs
        fields = {**fields, MODEL_PROBS: made_up_answer(model.artifact.manifest.labels)}
    return len(model.encode(fields, truncate=query.truncate).token_ids)


async def _discard_rest(request: Request, limit: int) -> None:
    try:
        await discard(request.stream(), limit, timeout_s=_DISCARD_S)
    except (ClientDisconnect, RuntimeError):
        return


@router.get("/evaluate/jobs", responses=error_responses("jobs_unavailable", "invalid_request"))
async def list_jobs(
    caller: CallerDep,
    board: JobsDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most jobs of one page.")] = 100,
    before: Annotated[
        str | None, Query(pattern=r"^[0-9]{1,18}$", description="`next` of the page before; unset: the newest jobs.")
    ] = None,
) -> JobsResponse:
    """Your jobs, without their results, a page at a time; everybody's with the scope admin."""
    await board.fresh()
    jobs = [job for job in board.jobs_of(caller.sees) if before is None or job.number < int(before)]
    page = jobs[:limit]
    following = str(page[-1].number) if len(jobs) > limit else None
    return JobsResponse(jobs=[job_out(job) for job in page], next=following)


@router.get("/evaluate/jobs/{job_id}", responses=error_responses(*JOB_ERRORS))
async def get_job(job_id: str, caller: CallerDep, board: JobsDep) -> JobOut:
    """How far a job is, its metrics so far, and its result once it is done."""
    await board.fresh()
    job = board.job(job_id, caller.sees)
    bad_rows = await board.ledger.bad_rows(job)
    result = await board.ledger.result(job)
    return job_out(job, columns=True, result=result, bad_rows=bad_rows)


@router.post("/evaluate/jobs/{job_id}/cancel", responses=error_responses(*JOB_ERRORS, "storage_full"))
async def cancel_job(job_id: str, caller: CallerDep, board: JobsDep) -> JobOut:
    """Cancel a job: nothing more of it runs, and it stays listed. One that has ended stays as it is.

    So a cancel that comes late, or twice, destroys nothing: `status` of the answer says what became of the job.
    """
    await board.fresh()
    job = board.job(job_id, caller.sees)
    await board.cancel(job)
    return job_out(job)


@router.delete("/evaluate/jobs/{job_id}", responses=error_responses(*JOB_ERRORS, "storage_full"))
async def delete_job(job_id: str, caller: CallerDep, board: JobsDep) -> JobDeleted:
    """Remove a job with its upload, its rows and its result. One that has not ended is cancelled first.

    POST .../cancel is for a job whose result, should it be done by now, is to stay.
    """
    await board.fresh()
    job = board.job(job_id, caller.sees)
    await board.cancel(job)
    await board.ledger.remove([job])
    return JobDeleted(id=job.id)
