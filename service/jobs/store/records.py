"""The records of a job: its description, its sums, its rows' answers; and the job as the server holds it in memory.

``About``, ``Sums`` and ``JobResult`` are on disk, as JSON. They are no part of the API's contract. A newer server may
have given them fields that this one does not know: it reads the rest, and keeps them where it writes a record anew.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel

from laplora.answers.evaluation import method_scores
from laplora.answers.labels import LabelNames, Truth
from laplora.decisions.thresholds import ReviewRule

Status = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
#: The statuses of a job on disk: one that runs is queued there, and so goes on after a restart.
StoredStatus = Literal["queued", "done", "failed", "cancelled"]
#: Consecutive rows of a job: the number of the first one, and of the one after the last.
RowRange = tuple[int, int]


class UploadedRow(NamedTuple):
    """A row of an upload, as it was sent.

    Attributes:
        inputs: everything but the id and the label; columns: everything.
    """

    id: str | None
    inputs: Mapping[str, Any]
    label: str | list[str] | None
    columns: Mapping[str, Any]


#: How the API reads a row of an upload, a JSON object: raises InvalidJsonError or InvalidRequestError for another.
ReadRow = Callable[[bytes], UploadedRow]


class ScoredRow(NamedTuple):
    """One row's answer: its number, from 0, where its true labels are, and its numbers by method.

    For a row without a label, ``truth`` is None, and no method is measured. ``methods`` is by name; of a row from disk
    or on its way, it is what is kept of the numbers (``numbers``). ``unfamiliar``, whether it is flagged so, is None
    where the artifact does not tell, and of a row read from disk. ``answer`` is what is kept of its answer, JSON; None
    of a job that keeps none. ``written`` is the answer (``laplora.answers.written``); None of a row read from disk.
    """

    row: int
    truth: Truth | None
    methods: Any
    unfamiliar: bool | None = None
    answer: str | None = None
    written: Mapping[str, Any] | None = None


class MethodSums(BaseModel, extra="allow"):
    """One method's sums over rows: right answers, NLL (nats), and by confidence bin right answers less confidences."""

    hits: float = 0.0
    nll: float = 0.0
    gaps: list[float]


class Answered(BaseModel, extra="allow"):
    """A summary of answers, with or without labels: counts over rows.

    ``uncertainty`` has sums (nats) of the parts that every row has.
    """

    rows: int = 0
    decisions: Counter[str] = Counter(accept=0, review=0)
    set_sizes: Counter[int] = Counter()
    uncertainty: dict[str, float] | None = None

    def plus(self, answers: Sequence[Mapping[str, Any]]) -> Answered:
        """Return the counts with more answers in them, as of ``laplora.answers.written``."""
        parts = [{k: v for k, v in (answer["uncertainty"] or {}).items() if v is not None} for answer in answers]
        if self.uncertainty is not None:
            parts.append(self.uncertainty)
        everywhere = set.intersection(*map(set, parts))
        more = self.model_copy(deep=True)
        more.rows += len(answers)
        more.decisions.update(answer["decision"] for answer in answers)
        more.set_sizes.update(len(answer["prediction_set"]) for answer in answers)
        more.uncertainty = {name: sum(part[name] for part in parts) for name in sorted(everywhere)}
        return more

    def means(self) -> dict[str, Any]:
        """Return the counts, and the mean of each part of the uncertainty, nats; None without any."""
        parts = {name: total / self.rows for name, total in (self.uncertainty or {}).items()}
        return self.model_dump() | {"uncertainty": parts or None}


class Sums(BaseModel, extra="allow"):
    """Sums over the first rows of a job that have a label, by method; of each so many ``LabelNames.questions``.

    ``answered`` is of rows without a label too; ``unfamiliar`` is how many of them are flagged so, None where the
    artifact does not tell of every row.
    """

    rows: int = 0
    questions: int = 1
    methods: dict[str, MethodSums] = {}
    unfamiliar: int | None = None
    answered: Answered = Answered()

    def plus(self, rows: Sequence[ScoredRow], *, labels: LabelNames, bins: int) -> Sums:
        """Return the sums with more rows in them, at least one.

        Raises:
            NonFiniteError: a probability that is not finite.
        """
        from laplora.metrics.scores import bins_of

        labelled = [row for row in rows if row.truth is not None]
        truths = [row.truth for row in labelled if row.truth is not None]
        methods = dict(self.methods)
        for name in labelled[0].methods if labelled else ():
            scores = method_scores([row.methods[name] for row in labelled], truths, labels)
            before = self.methods.get(name) or MethodSums(gaps=[0.0] * bins)
            new = bins_of(scores, bins)
            gaps = [b.count * ((b.accuracy or 0.0) - (b.confidence or 0.0)) for b in new]
            sums = {
                "hits": before.hits + float(scores.hits.sum()),
                "nll": before.nll + float(scores.nll.sum()),
                "gaps": [a + b for a, b in zip(before.gaps, gaps, strict=True)],
            }
            methods[name] = before.model_copy(update=sums)
        new_sums = {
            "rows": self.rows + len(labelled),
            "questions": labels.questions,
            "methods": methods,
            "unfamiliar": self._flagged(rows),
            "answered": self.answered.plus([row.written for row in rows if row.written is not None]),
        }
        return self.model_copy(update=new_sums)

    def _flagged(self, rows: Sequence[ScoredRow]) -> int | None:
        """Return how many rows are flagged as unfamiliar, with more rows in them."""
        before = self.unfamiliar if self.scored else 0
        flags = [row.unfamiliar for row in rows if row.unfamiliar is not None]
        return None if before is None or len(flags) < len(rows) else before + sum(flags)

    @property
    def unfamiliar_share(self) -> float | None:
        """Share of the rows that are flagged as unfamiliar, 0 to 1; None where ``unfamiliar`` is, or without a row."""
        return None if self.unfamiliar is None or not self.scored else self.unfamiliar / self.scored

    @property
    def scored(self) -> int:
        return self.answered.rows

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Return accuracy, NLL (nats) and ECE by method, as of ``laplora.metrics.scores``; None without a row."""
        if self.rows == 0:
            return None
        count = self.rows * self.questions
        return {
            name: {
                "accuracy": sums.hits / count,
                "nll": sums.nll / count,
                "ece": sum(map(abs, sums.gaps)) / count,
            }
            for name, sums in self.methods.items()
        }


class ArtifactVersion(BaseModel):
    """An artifact and its content: what a result is of."""

    name: str
    digest: str
    base_model: str
    quantization: str


class JobOptions(BaseModel):
    """How a job measures: as of POST /evaluate."""

    truncate: bool = False
    bins: int = 15
    resamples: int = 1000
    seed: int = 0


class JobResult(BaseModel):
    """The metrics of a job that is done: scored rows with a label, metrics by method; of all the unfamiliar share."""

    artifact: ArtifactVersion
    rows: int
    unfamiliar: float | None
    methods: dict[str, dict[str, Any]]


class About(BaseModel):
    """The description of a job, fixed at its upload.

    Attributes:
        labels: the artifact's, in order; several: whether several of an input's may be right.
        answer_bytes: that their answers take in the database at most, as the upload was told.
        rows: of the upload; labelled: those that have a label; tokens: of all its prompts.
        created_at: seconds since the epoch.
        keep_rows: whether rows and their answers are kept with the result.
        upload_bytes: size of the upload as it is kept.
        fields: of the artifact's template: what of a row its prompt is made of.
        columns: names of the upload's columns, in the order in which they came.
        content: digest of the upload as it came, unpacked.
        rule: of the predictive that answers, by which decisions are made (``ReviewRule``).
    """

    artifact: ArtifactVersion
    labels: tuple[str, ...]
    several: bool = False
    options: JobOptions
    rows: int
    labelled: int
    answer_bytes: int
    tokens: int
    created_at: float
    keep_rows: bool
    upload_bytes: int
    fields: tuple[str, ...]
    columns: tuple[str, ...]
    content: str
    rule: dict[str, Any]

    @cached_property
    def review_rule(self) -> ReviewRule:
        """The rule, read once for all rows; a newer server may have kept more of it."""
        return ReviewRule.model_validate(self.rule, extra="ignore")

    @property
    def label_names(self) -> LabelNames:
        """The artifact's labels."""
        return LabelNames(self.labels, self.several)


@dataclass(eq=False)
class Job:
    """A job and how far it is. Belongs to the event loop.

    Attributes:
        number: its key on disk, growing.
        rows_done: rows that are over, and on disk: the first ones, always.
        bad_counts: of those of them that could not be scored, by the code of why.
        begun: rows that were under way when an earlier process ended uncleanly, and how often nothing of any job was
            under way beside them.
        input_offset: where in the upload, in bytes, the next row begins.
        absent_s: seconds that its artifact has not been loaded while the server ran, since it last was.
        error, paused: code and message of what it failed for, or waits for.
        left_at: since when no server that claimed it has had what it needs, by the database's clock; None where it
            runs, or nobody has tried.
        started_at, finished_at: seconds since the epoch.
        keeps_rows: whether its rows and their answers stay, for as long as it does.
        answer_bytes: of its rows' answers in the database.
        server: which server has claimed it, None where none has; fence: the number of that claim.
        mine: whether this server has; what another one runs is only looked at.
        beyond_share: whether it was claimed because another server could not run it: it is no part of a share.
        lost: whether its end could not be written down: under that claim it runs no more.
        changes: how often it has changed on disk, when another server's job was last read.
        pace: at the end of each of the last chunks, since the last pause: ``time.monotonic`` seconds and rows done.
    """

    id: str
    owner: str
    idempotency_key: str | None
    about: About
    number: int = 0
    status: Status = "queued"
    rows_done: int = 0
    bad_counts: Counter[str] = field(default_factory=Counter)
    begun: dict[RowRange, int] = field(default_factory=dict)
    input_offset: int = 0
    sums: Sums = field(default_factory=Sums)
    absent_s: float = 0.0
    error: dict[str, Any] | None = None
    paused: dict[str, Any] | None = None
    left_at: float | None = None
    keeps_rows: bool = False
    answer_bytes: int = 0
    server: str | None = None
    fence: int = 0
    mine: bool = False
    beyond_share: bool = False
    lost: bool = False
    changes: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    pace: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=9))
    cancelling: bool = False

    @property
    def finished(self) -> bool:
        return self.status in ("done", "failed", "cancelled")

    @property
    def shared_out(self) -> bool:
        """Whether it is one of those that the servers divide among them: unfinished, and left by none."""
        return not (self.finished or self.beyond_share or self.left_at is not None)

    @property
    def disk_bytes(self) -> int:
        """Bytes of its upload and its answers, as long as they are kept; of an unfinished job those it will have."""
        answers = self.answer_bytes if self.finished else max(self.answer_bytes, self.about.answer_bytes)
        return self.about.upload_bytes + answers

    @property
    def rows_bad(self) -> int:
        """How many of the rows done could not be scored."""
        return self.bad_counts.total()

    @property
    def rows_per_second(self) -> float | None:
        """The recent speed, with the turns of other jobs, without pauses; None while it does not run."""
        if self.status != "running" or len(self.pace) < 2:
            return None
        (begun_s, first), (now_s, last) = self.pace[0], self.pace[-1]
        return (last - first) / (now_s - begun_s) if now_s > begun_s else None

    @property
    def seconds_left(self) -> float | None:
        """Until its last row is over, at the pace of late, measuring not counted; None where there is no pace."""
        speed = self.rows_per_second
        return None if not speed else (self.about.rows - self.rows_done) / speed


def compact(value: Any) -> str:
    """Return a value as JSON; ValueError for a number that is not finite."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
