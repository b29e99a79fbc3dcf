"""The report of a finished job: the same page as of a training run, made of the rows that were uploaded.

``take_rows`` is all that knows how a job keeps its rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from service.errors import ReportNotFoundError
from service.jobs.answered import AnsweredRow, answered_pages
from service.jobs.ledger import Ledger
from service.jobs.records import About, Job

if TYPE_CHECKING:
    from laplora.artifact.manifest import Manifest
    from laplora.report.records import Report, Rows

#: Rows that are looked at one by one, and probabilities of theirs, at most: of a larger job evenly spaced ones are.
MOST_ROWS, MOST_PROBABILITIES = 10_000, 2_000_000
#: Columns of the upload that are looked at for slices, at most.
_MOST_COLUMNS = 20
#: Most characters that are kept of a value, of the prompt's fields and of others: no text that is shown and no
#: category is longer.
_TEXT, _CATEGORY = 300, 64


@dataclass
class TakenRows:
    """Some of a job's scored rows, column by column.

    Attributes:
        truths: where the right labels are among the job's; answers: as of POST /predict, what a report needs of them.
        values: of each row the columns of the upload, cut short.
    """

    numbers: list[int] = field(default_factory=list)
    truths: list[Any] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)


async def take_rows(ledger: Ledger, job: Job) -> TakenRows:
    """Return the scored rows of a job, evenly spaced ones where it has more than a report looks at.

    Raises:
        RowsNotKeptError, UploadChangedError, StorageFullError, JobsUnavailableError: as of ``answered_pages``.
    """
    about, taken = job.about, TakenRows()
    most = max(1, min(MOST_ROWS, MOST_PROBABILITIES // len(about.labels)))
    step = -(-job.rows_done // most)
    async with aclosing(answered_pages(ledger, job)) as pages:
        async for page in pages:
            await ledger.in_files(_take, taken, [one for one in page if one.row % step == 0], about)
    return taken


def _take(taken: TakenRows, page: Sequence[AnsweredRow], about: About) -> None:
    for one in page:
        if one.scored is None or one.answer is None:
            continue
        taken.numbers.append(one.row)
        taken.truths.append(one.scored.truth)
        wanted = ("map_probs", "probs", "probs_std", "score", "decision", "tokens", "prediction_set")
        answer = {name: one.answer[name] for name in wanted}
        answer["epistemic"] = (one.answer["uncertainty"] or {}).get("epistemic")
        answer["unfamiliar"] = "unfamiliar" in one.answer["flags"]
        taken.answers.append(answer)
        fields = about.fields or ()
        others = [name for name in about.columns if name not in (*fields, "label")][:_MOST_COLUMNS]
        kept = {name: _short(one.columns.get(name), _TEXT) for name in fields}
        taken.values.append(kept | {name: _short(one.columns.get(name), _CATEGORY) for name in others})


def _short(value: Any, most: int) -> Any:
    if isinstance(value, list):
        return [str(part)[:most] for part in value[:_MOST_COLUMNS]]
    return (value if isinstance(value, str) else json.dumps(value))[:most]


def job_report(job: Job, result: Mapping[str, Any], taken: TakenRows, manifest: Manifest, *, texts: bool) -> Report:
    """Return the report of a job that is done, from its result and its rows.

    Args:
        manifest: of the artifact that answered, which has what it promises; texts: whether the rows' texts are shown.

    Raises:
        ReportNotFoundError: no row could be scored.
    """
    from laplora.report.records import Promise, Report

    if not taken.numbers:
        raise ReportNotFoundError("no row of the job could be scored: there is nothing to report")
    about, predictive = job.about, manifest.recommended.predictive
    rule = manifest.predictives[predictive].thresholds.review
    rows = _rows(about, taken, rule.threshold, texts=texts)
    served = f"{predictive}_order_average" if about.options.order_average else str(predictive)
    methods = {name: dict(values) for name, values in result["methods"].items()}
    if not about.several:
        held = sum(
            about.labels[truth] in answer["prediction_set"]
            for truth, answer in zip(taken.truths, taken.answers, strict=True)
        )
        methods[served]["sets"] = {"coverage": held / len(taken.numbers)}
    gain = methods[served].get("over_temperature")
    familiarity = manifest.familiarity
    return Report(
        title=about.artifact.name,
        measured_on=f"{result['rows']} uploaded rows, job {job.id}",
        served=served,
        reason=manifest.recommended.reason,
        labels=("absent", "present") if about.several else about.labels,
        promise=Promise(
            target_risk=rule.target_risk,
            coverage=manifest.calibration.coverage,
            calibration_rows=manifest.calibration.rows,
            false_alarms=None if familiarity is None else familiarity.false_alarms,
        ),
        methods=methods,
        rows=rows,
        gain=None if gain is None else (gain["difference"], gain["low"], gain["high"]),
        unfamiliar=result.get("unfamiliar"),
        notes=list(_notes(job, result, taken)),
        provenance=_provenance(job),
    )


def _rows(about: About, taken: TakenRows, threshold: float | None, *, texts: bool) -> Rows:
    import torch

    from laplora.report.records import Rows, Slicing
    from laplora.report.slices import slices_of
    from service.scoring.evaluation import questions

    answers, names = taken.answers, about.label_names
    each = names.questions

    def column(values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(each)

    probs, labels = questions([list(answer["probs"].values()) for answer in answers], taken.truths, names)
    map_probs, _ = questions([list(answer["map_probs"].values()) for answer in answers], taken.truths, names)
    has_epistemic = not about.several and all(answer["epistemic"] is not None for answer in answers)
    has_std = not about.several and all(answer["probs_std"] is not None for answer in answers)
    fields = about.fields or ()
    slicings = slices_of(
        taken.values, [answer["tokens"] for answer in answers], torch.tensor([a["unfamiliar"] for a in answers])
    )
    slicings = [Slicing(one.title, one.names, one.index.repeat_interleave(each)) for one in slicings]
    if about.several:
        which = torch.arange(each).repeat(len(answers))
        slicings.insert(0, Slicing("label", about.labels, which))
    places = probs.argmax(1).tolist()
    return Rows(
        labels=labels,
        map_probs=map_probs,
        probs=probs,
        score=column([answer["score"] for answer in answers]),
        threshold=threshold,
        review=column([answer["decision"] == "review" for answer in answers]).bool(),
        epistemic=column([answer["epistemic"] for answer in answers]) if has_epistemic else None,
        std=column([list(a["probs_std"].values())[i] for a, i in zip(answers, places, strict=True)])
        if has_std
        else None,
        references=[
            f"line {number + 1}" + (f", {label}" if label else "")
            for number in taken.numbers
            for label in (about.labels if about.several else ("",))
        ],
        texts=[_text(row, fields) for row in taken.values for _ in range(each)] if texts else None,
        slices=slicings,
    )


def _text(values: Mapping[str, Any], fields: Sequence[str]) -> str:
    parts = (values[name] for name in fields if name in values)
    return " · ".join(part if isinstance(part, str) else " / ".join(part) for part in parts)


def _notes(job: Job, result: Mapping[str, Any], taken: TakenRows) -> Iterator[str]:
    if len(taken.numbers) < result["rows"]:
        yield (
            f"The verdict, labels, slices and rows below are of {len(taken.numbers)} of the rows, evenly spaced; the "
            "predictives' figures are of all"
        )
    if job.rows_bad:
        yield f"{job.rows_bad} further rows could not be scored"
    if job.about.several:
        yield (
            "Several labels may be right: each label of an input counts as a question of its own. Intervals of shares "
            "take questions for independent, and are too narrow where an input's labels go together"
        )


def _provenance(job: Job) -> dict[str, str]:
    about = job.about

    def at(seconds: float | None) -> str:
        return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

    return {
        "artifact": f"{about.artifact.name}, {about.artifact.digest}",
        "base model": f"{about.artifact.base_model}, {about.artifact.quantization}",
        "job": job.id,
        "uploaded": at(about.created_at),
        "measured": at(job.finished_at),
        "rows": f"{about.rows} uploaded, {job.rows_bad} of them not scored",
        "options": about.options.model_dump_json(),
    }
