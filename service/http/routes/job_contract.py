"""Jobs and the contract: how a row of an upload is read, and how a job is shown."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from service.errors import InvalidJsonError, InvalidRequestError
from service.http.json_parsing import parse_json
from service.http.schemas.inputs import JobInput
from service.http.schemas.jobs import JobOut
from service.jobs.store.records import Job, JobResult, UploadedRow


def read_uploaded(line: bytes) -> UploadedRow:
    """Return a row of an upload, as POST /evaluate reads an input, but that it may have no label, and further columns.

    Raises:
        InvalidJsonError, InvalidRequestError: as of a body; fields and messages are of the row.
    """
    try:
        columns = parse_json(line)
        item = JobInput.model_validate(columns)
    except InvalidJsonError as error:
        raise InvalidJsonError(str(error).replace("the body", "it", 1)) from None
    except ValidationError as error:
        # The first problem only, by place and kind, as of a body: never what was sent.
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(f"{field[:200] or 'the object'}: {first['msg']}", field=field or None) from None
    return UploadedRow(item.id, item.template_fields, item.label, columns)


def job_out(
    job: Job,
    *,
    columns: bool = False,
    result: JobResult | None = None,
    bad_rows: Sequence[tuple[int, str]] | None = None,
) -> JobOut:
    """Return a job as the contract writes it.

    Args:
        columns: whether with their names, which may be long.
        bad_rows: numbers, from 0, of the rows that could not be scored, and the codes of why.
    """
    about, answered = job.about, job.sums.answered
    return JobOut.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "owner": job.owner,
            "artifact": about.artifact.model_dump(),
            "options": about.options.model_dump(),
            "rows": about.rows,
            "rows_labelled": about.labelled,
            "columns": list(about.columns) if columns else None,
            "keep_rows": about.keep_rows,
            "rows_done": job.rows_done,
            "rows_bad": job.rows_bad,
            "rows_per_second": job.rows_per_second,
            "seconds_left": job.seconds_left,
            "partial": job.sums.metrics(),
            "answered": answered.means() | {"unfamiliar": job.sums.unfamiliar_share} if answered.rows else None,
            "bad_rows": None if bad_rows is None else [{"line": row + 1, "code": code} for row, code in bad_rows],
            "paused": job.paused,
            "error": job.error,
            "created_at": about.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
            "result": None if result is None else result.model_dump(),
        },
        # Fields of a newer server's results and errors are no part of this one's contract.
        extra="ignore",
    )
