"""One job, as the server holds it in memory."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import BaseModel

from service.http.schemas.artifacts import ArtifactRef
from service.http.schemas.evaluate import MeasureOptions
from service.jobs.metrics import Sums
from service.jobs.quota import Hold

Status = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
#: What a job can be on disk: one that runs is queued there, and so goes on after a restart.
StoredStatus = Literal["queued", "done", "failed", "cancelled"]
#: Consecutive rows of a job: the number of the first one, and of the one after the last.
Rows = tuple[int, int]


class About(BaseModel):
    """What a job is from its upload on.

    Attributes:
        labels: the artifact's, in order.
        rows: lines of the upload; tokens: of all its prompts.
        created_at: seconds since the epoch.
    """

    artifact: ArtifactRef
    labels: tuple[str, ...]
    options: MeasureOptions
    rows: int
    tokens: int
    created_at: float


@dataclass(eq=False)
class Job:
    """A job and how far it is. Belongs to the event loop.

    Attributes:
        number: its key on disk, growing.
        owner: name of the caller that uploaded it.
        rows_done: rows that are over, and on disk: the first ones, always.
        bad_counts: of those of them that could not be scored, by the code of why.
        begun: rows that were under way when an earlier process ended uncleanly, and how often nothing of any job was
            under way beside them.
        input_offset: where in the upload, in bytes, the next row begins.
        sums: of the rows done, behind the partial metrics.
        absent_s: seconds that its artifact has not been loaded while the server ran, since it last was.
        error: code, message and perhaps field, of a failed one.
        paused: code and message of what it waits for.
        started_at, finished_at: seconds since the epoch.
        pace: of the last chunks, rows and seconds.
        hold: what it holds of the limits until it has ended.
        cancelling: it is to be cancelled, which may not be on disk yet.
        told: names of the callers who were told that it has ended.
        changes: how often it has changed since the server's start.
        changed: set at the next change, which puts another one in its place.
        event: the newest change as its readers get it, and which one that is.
    """

    id: str
    owner: str
    idempotency_key: str | None
    about: About
    number: int = 0
    status: Status = "queued"
    rows_done: int = 0
    bad_counts: Counter[str] = field(default_factory=Counter)
    begun: dict[Rows, int] = field(default_factory=dict)
    input_offset: int = 0
    sums: Sums = field(default_factory=Sums)
    absent_s: float = 0.0
    error: dict[str, Any] | None = None
    paused: dict[str, Any] | None = None
    started_at: float | None = None
    finished_at: float | None = None
    pace: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=8))
    hold: Hold | None = None
    cancelling: bool = False
    told: set[str] = field(default_factory=set)
    changes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    event: tuple[int, bytes] = (-1, b"")

    @property
    def finished(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.status in ("done", "failed", "cancelled")

    @property
    def rows_bad(self) -> int:
        """How many of the rows done could not be scored."""
        return self.bad_counts.total()

    @property
    def rows_per_second(self) -> float | None:
        """Of late, with the turns of other jobs between, pauses left out; None while it does not run."""
        seconds = sum(duration_s for _, duration_s in self.pace)
        return sum(rows for rows, _ in self.pace) / seconds if self.status == "running" and seconds > 0 else None
