"""GET /evaluate/jobs/{job_id}/results: the rows of a large evaluation with their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from laplora.answers.written import Detail, Shown
from service.http.openapi import JOB_ERRORS, error_responses
from service.http.routes.dependencies import CallerDep, DownloadsDep, JobsDep, SettingsDep
from service.jobs.reading.rows import check_kept, json_lines
from service.telemetry.logs import logger

router = APIRouter(tags=["jobs"])

_MEDIA_TYPE = "application/jsonl"
_ROW = {
    "type": "object",
    "description": "One line of the answer: one row of the upload.",
    "properties": {
        "line": {"type": "integer", "description": "Number of the line, from 1; blank ones are not counted."},
        "input": {"type": "object", "description": "The row as it was uploaded, with every column."},
        "answer": {
            "type": ["object", "null"],
            "description": "As of POST /predict, without id, logits and calibrated_probs; null where there is none.",
        },
        "error": {"type": ["string", "null"], "description": "The code of why there is none; null where there is."},
    },
}


class _Download(StreamingResponse):
    """A download that says when it is over, however it ends. After ``timeout_s`` it is cut off: its end is missing."""

    def __init__(
        self, parts: AsyncGenerator[bytes], headers: dict[str, str], *, on_end: Callable[[], None], timeout_s: float
    ) -> None:
        super().__init__(parts, media_type=_MEDIA_TYPE, headers={"Cache-Control": "no-store", **headers})
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
    "/evaluate/jobs/{job_id}/results",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The rows that are over, in the order of the upload.",
            "content": {_MEDIA_TYPE: {"schema": _ROW}},
        },
        **error_responses(
            *JOB_ERRORS,
            "too_many_requests",
            "client_too_many_requests",
            "rows_not_kept",
            "invalid_request",
            "storage_full",
        ),
    },
)
async def job_results(
    job_id: str,
    caller: CallerDep,
    board: JobsDep,
    downloads: DownloadsDep,
    settings: SettingsDep,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="Number of a line: the answer begins with the one after it.")
    ] = 0,
    detail: Annotated[Detail, Query(description="Fields of an answer, as options.detail of POST /predict.")] = "short",
) -> StreamingResponse:
    """Download every row of a job with its answer, and the upload's own columns beside it.

    If the job has not ended, the rows so far. A download that broke off goes on with `after`, the last `line` that
    came.
    """
    await board.fresh()
    job, reader = board.job(job_id, caller.sees), caller.name
    check_kept(job)
    downloads.add(reader, 1)
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.jsonl"'}
    parts = json_lines(board.ledger.disk, job, first=after, shown=Shown(detail))
    on_end = partial(downloads.remove, reader, 1)
    return _Download(parts, headers, on_end=on_end, timeout_s=settings.job_download_timeout_s)
