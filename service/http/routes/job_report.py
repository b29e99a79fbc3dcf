"""GET /evaluate/jobs/{job_id}/report: a finished job as one page for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from laplora.answers.reporting import MeasuredRows
from laplora.errors import LaploraError
from service.errors import ReportNotFoundError
from service.http.disconnects import while_awaited
from service.http.openapi import JOB_ERRORS, error_responses
from service.http.routes.dependencies import ArtifactsDep, CallerDep, DownloadsDep, JobsDep, ReportsDep, SettingsDep
from service.jobs.reading.report import job_report, take_rows
from service.jobs.store.records import Job, JobResult

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

router = APIRouter(tags=["jobs"])

_ERRORS = (
    *JOB_ERRORS,
    "report_not_found",
    "rows_not_kept",
    "storage_full",
    "upload_changed",
    "deadline_exceeded",
    "invalid_request",
    "too_many_requests",
    "client_too_many_requests",
)


@router.get(
    "/evaluate/jobs/{job_id}/report",
    response_class=Response,
    responses={
        200: {"description": "An HTML page.", "content": {"text/html": {"schema": {"type": "string"}}}},
        **error_responses(*_ERRORS),
    },
)
async def get_job_report(
    job_id: str,
    caller: CallerDep,
    board: JobsDep,
    artifacts: ArtifactsDep,
    downloads: DownloadsDep,
    reports: ReportsDep,
    request: Request,
    settings: SettingsDep,
    texts: Annotated[bool, Query(description="Whether the page shows the texts of the rows that it lists.")] = False,
) -> HTMLResponse:
    """The report of a job that is done: whether to ship the artifact by its rows, and why. It runs no script.

    It needs the rows, and the artifact that answered them, loaded or in the artifacts root. If there are more than
    10,000 rows, single rows are shown at even distances.
    """
    await board.fresh()
    job = board.job(job_id, caller.sees)
    result = await board.ledger.result(job)
    if result is None:
        raise ReportNotFoundError("the job is not done: its report is made of its result")
    digest = job.about.artifact.digest
    readable = [item for _, item, _ in await artifacts.listed() if not isinstance(item, LaploraError)]
    artifact = next((item for item in readable if item.digest == digest), None)
    if artifact is None:
        raise ReportNotFoundError("the artifact that answered is not there any more, and with it what it promises")
    downloads.add(caller.name, 1)

    async def page() -> str:
        # The rows of one report at a time are in memory.
        async with reports.turn(caller.name) as run:
            taken = await take_rows(board.ledger.disk, job, run)
            return await run(lambda: _page(job, result, taken, artifact, texts=texts))

    try:
        return HTMLResponse(await while_awaited(request, page(), timeout_s=settings.request_timeout_s))
    finally:
        downloads.remove(caller.name, 1)


def _page(job: Job, result: JobResult, taken: MeasuredRows, artifact: Artifact, *, texts: bool) -> str:
    from laplora.report.page import html
    from laplora.report.verdict import judge

    report = job_report(job, result, taken, artifact, texts=texts)
    return html(report, judge(report))
