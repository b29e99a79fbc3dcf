"""Query and bodies of /evaluate/jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field, FiniteFloat

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.base import Answer
from service.http.schemas.errors import ErrorDetail
from service.http.schemas.evaluate import MeasureOptions, MethodMetrics, PartialMetrics


class JobQuery(MeasureOptions):
    """How to answer and measure an upload."""

    model_config = ConfigDict(strict=False)

    artifact: str | None = Field(None, max_length=256, examples=[None])
    """Name of the artifact that must answer; unset: the active one."""
    keep_rows: bool = Field(True, examples=[True])
    """Whether every row and its answer are kept, for as long as the job is: GET .../results and .../report need them.
    false: the rows leave the server's disk as the job ends.
    """

    @property
    def options(self) -> MeasureOptions:
        """How it is measured."""
        return MeasureOptions(**self.model_dump(exclude={"artifact", "keep_rows"}))


class JobResult(Answer):
    """The metrics by predictive of the rows that have a label and could be scored, as of POST /evaluate."""

    artifact: ArtifactRef = Field(description="Which artifact answered.")
    rows: int = Field(description="Number of inputs measured: those with a label and an answer.", examples=[20000])
    unfamiliar: FiniteFloat | None = Field(examples=[0.016])
    """Share of all answered inputs that are flagged as unfamiliar, 0 to 1; null where the artifact does not tell."""
    methods: dict[str, MethodMetrics] = Field(description="Metrics by predictive; none without a label.")


class AnsweredOut(Answer):
    """A summary of the answers so far, with labels or without."""

    rows: int = Field(description="Number of inputs that have an answer.", examples=[5119])
    decisions: dict[Literal["accept", "review"], int] = Field(examples=[{"accept": 4120, "review": 999}])
    """Number of inputs by decision."""
    set_sizes: dict[int, int] = Field(examples=[{1: 4400, 2: 719}])
    """Number of inputs by the number of labels in their prediction set."""
    unfamiliar: FiniteFloat | None = Field(examples=[0.016])
    """Share that is flagged as unfamiliar, 0 to 1; null where the artifact does not tell."""
    uncertainty: dict[str, FiniteFloat] | None = Field(examples=[{"total": 0.47, "aleatoric": 0.41, "epistemic": 0.06}])
    """Means of the parts of the uncertainty that every answer has, nats; null where there is none."""


class JobPause(Answer):
    """The reason of a pause; the job continues by itself."""

    code: str = Field(examples=["queue_full"])
    """The error that the job was refused with: queue_full, not_ready, storage_full or another with 429 or 503; of
    servers that share their jobs also artifact_changed, artifact_not_loaded or upload_changed: the last one that tried
    has not what the job needs, and another may.
    """
    message: str = Field(examples=["2040 rows wait and 40 came, max_queue_rows is 2048: try again later"])
    """The expected and the given value."""


class BadRow(Answer):
    """One line of an upload that could not be scored."""

    line: int = Field(description="Number of the line, from 1; blank lines are not counted.", examples=[17])
    code: str = Field(examples=["unscorable_input"])
    """The error of POST /evaluate for it: unscorable_input, device_memory or another; device_fault: the server, or
    on a Ray cluster the scorers, ended uncleanly, several times, while this row ran.
    """


class JobOut(Answer):
    """A large evaluation and how far it is."""

    id: str = Field(description="Its id.", examples=["7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"])
    status: Literal["queued", "running", "paused", "done", "failed", "cancelled"] = Field(examples=["running"])
    """queued: for its turn; running; paused: waiting for what the field paused says; done: there is a result; failed:
    the field error says why; cancelled.
    """
    owner: str = Field(description="The caller that uploaded it.", examples=["127.0.0.1"])
    artifact: ArtifactRef = Field(description="The artifact that it measures; no other content of it will do.")
    options: MeasureOptions = Field(description="How it evaluates.")
    rows: int = Field(description="Number of inputs in all; blank lines are none.", examples=[20000])
    rows_labelled: int = Field(description="Number of inputs that have a label.", examples=[20000])
    columns: list[str] | None = Field(examples=[["text", "label", "source"]])
    """The columns of the upload, in the order in which they came; null in lists, and in answers to a cancel."""
    keep_rows: bool = Field(description="Whether its rows and their answers are kept with it.", examples=[True])
    rows_done: int = Field(examples=[5120])
    """Number of inputs that are over, answered or left out, and on disk."""
    rows_bad: int = Field(examples=[1])
    """Number of inputs that could not be scored: left out, and no part of any metric. More than max_job_bad_rows fail
    the job.
    """
    rows_per_second: FiniteFloat | None = Field(examples=[11.5])
    """Number of inputs per second of late, with other jobs' turns between; null while it does not run."""
    seconds_left: FiniteFloat | None = Field(examples=[1294.0])
    """Estimate of the seconds until the last input is over, at the speed of late; what comes then, the metrics, is not
    counted. null while there is no speed.
    """
    partial: dict[str, PartialMetrics] | None
    """Metrics by predictive of the rows done that have a label and an answer; null before the first."""
    answered: AnsweredOut | None
    """A summary of the answers so far; null before the first."""
    bad_rows: list[BadRow] | None
    """The lines that could not be scored; null in lists, and in answers to an upload or a cancel."""
    paused: JobPause | None = Field(description="The reason of its pause; null unless it is paused.")
    error: ErrorDetail | None = Field(description="Why it failed; null unless it did.")
    created_at: AwareDatetime = Field(examples=["2026-01-31T12:00:00Z"])
    """When the upload had come, UTC by the server's clock."""
    started_at: AwareDatetime | None = Field(examples=["2026-01-31T12:00:01Z"])
    """When it began to run; null before."""
    finished_at: AwareDatetime | None = Field(examples=["2026-01-31T12:30:00Z"])
    """When it ended; null before. job_keep_s later it is removed."""
    result: JobResult | None
    """Metrics of the inputs with a label; null unless it is done, in lists, and in answers to an upload or a cancel."""


class JobsResponse(Answer):
    """The caller's jobs."""

    jobs: list[JobOut] = Field(description="The newest first; everybody's for a caller with the scope admin.")
    next: str | None = Field(None, examples=[None])
    """The value of `before` for the next page; null on the last one."""


class JobDeleted(Answer):
    """A job that is gone."""

    id: str = Field(description="Its id.", examples=["7f3c1f0ab5a94f6fa7c3d1b2c4e5f607"])
    outcome: Literal["removed"] = Field("removed", description="Always removed.", examples=["removed"])
