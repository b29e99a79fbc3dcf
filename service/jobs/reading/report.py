"""The report of a finished job: the same page as of a training run, made of the rows that were uploaded.

``take_rows`` is all that knows how a job keeps its rows.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from laplora.answers.reporting import BY_LABEL, MeasuredRows, measured_report
from service.errors import ReportNotFoundError
from service.jobs.reading.rows import AnsweredRow, answered_pages
from service.jobs.store.disk import Disk
from service.jobs.store.records import About, Job, JobResult

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact
    from laplora.report.records import Report

#: Rows that are looked at one by one, and numbers by label of theirs, at most: of a larger job evenly spaced ones are.
MOST_ROWS, MOST_NUMBERS = 10_000, 2_000_000
#: Columns of the upload that are looked at for slices, at most.
_MOST_COLUMNS = 20
#: Most characters that are kept of a value, of the prompt's fields and of others: no text that is shown and no
#: category is longer.
_TEXT, _CATEGORY = 300, 64


async def take_rows(disk: Disk, job: Job, run: Callable[[Callable[[], None]], Awaitable[None]]) -> MeasuredRows:
    """Return the scored rows of a job that have a label, evenly spaced ones where it has more than a report looks at.

    Args:
        run: runs work on a thread, a page of rows at a time.

    Raises:
        RowsNotKeptError, UploadChangedError, StorageFullError, JobsUnavailableError: as of ``answered_pages``.
    """
    about, taken = job.about, MeasuredRows()
    most = max(1, min(MOST_ROWS, MOST_NUMBERS // (BY_LABEL * len(about.labels))))
    step, first = max(1, -(-job.sums.rows // most)), 0
    async with aclosing(answered_pages(disk, job)) as pages:
        async for page in pages:
            labelled = [one for one in page if one.scored is not None and one.scored.truth is not None]
            await run(partial(_take, taken, labelled[-first % step :: step], about))
            first += len(labelled)
    return taken


def _take(taken: MeasuredRows, page: Sequence[AnsweredRow], about: About) -> None:
    for one in page:
        if one.scored is None or one.scored.truth is None or one.answer is None:
            continue
        fields = about.fields
        others = [name for name in about.columns if name not in (*fields, "label")][:_MOST_COLUMNS]
        values = {name: _short(one.columns.get(name), _TEXT) for name in fields}
        values |= {name: _short(one.columns.get(name), _CATEGORY) for name in others}
        taken.add(f"line {one.row + 1}", one.scored.truth, one.answer, values)


def _short(value: Any, most: int) -> Any:
    if isinstance(value, list):
        return [str(part)[:most] for part in value[:_MOST_COLUMNS]]
    return (value if isinstance(value, str) else json.dumps(value))[:most]


def _unfamiliar(taken: MeasuredRows) -> float:
    """Return the share of unfamiliar rows among those that are looked at, whose number sets its limit."""
    flags = [bool(answer["unfamiliar"]) for answer in taken.answers]
    return sum(flags) / len(flags)


def job_report(job: Job, result: JobResult, taken: MeasuredRows, artifact: Artifact, *, texts: bool) -> Report:
    """Return the report of a job that is done, from its result and its rows.

    Args:
        artifact: that answered, which has what it promises; texts: whether the rows' texts are shown.

    Raises:
        ReportNotFoundError: no row that has a label could be scored.
    """
    from laplora.answers.explaining import nothing_accepted_of

    if not taken.references:
        raise ReportNotFoundError("no row of the job has a label and an answer: there is nothing to measure")
    about, manifest = job.about, artifact.manifest
    return measured_report(
        taken,
        manifest,
        result.methods,
        names=about.label_names,
        predictive=str(manifest.recommended.predictive),
        title=about.artifact.name,
        measured_on=f"{result.rows} uploaded rows, job {job.id}",
        fields=about.fields,
        unfamiliar=None if result.unfamiliar is None else _unfamiliar(taken),
        nothing=nothing_accepted_of(artifact, manifest.recommended.predictive),
        notes=list(_notes(job, result, taken)),
        provenance=_provenance(job),
        texts=texts,
    )


def _notes(job: Job, result: JobResult, taken: MeasuredRows) -> Iterator[str]:
    if len(taken.references) < result.rows:
        yield (
            f"The verdict, labels, slices and rows below are of {len(taken.references)} of the rows, evenly spaced; "
            "the predictives' figures are of all"
        )
    if job.rows_bad:
        yield f"{job.rows_bad} further rows could not be scored"
    if job.sums.scored > result.rows:
        yield f"{job.sums.scored - result.rows} further rows have no label, and are part of no figure"


def _provenance(job: Job) -> dict[str, str]:
    about = job.about

    def at(seconds: float | None) -> str:
        return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

    return {
        "artifact": f"{about.artifact.name}, {about.artifact.digest}",
        "job": job.id,
        "uploaded": at(about.created_at),
        "measured": at(job.finished_at),
        "rows": f"{about.rows} uploaded, {job.rows_bad} of them not scored",
        "options": about.options.model_dump_json(),
    }
