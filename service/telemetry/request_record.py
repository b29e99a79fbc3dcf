"""What becomes known of a request while it is served: where its time went and what it asked for. For log and traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastapi import Request

if TYPE_CHECKING:
    from service.scoring.engine import Ticket

StageName = Literal["tokenize", "queue", "compute"]


@dataclass(frozen=True)
class Stage:
    """One part of a request's time, from ``begun`` to ``ended`` (``time.monotonic`` seconds)."""

    name: StageName
    begun: float
    ended: float


@dataclass
class RequestRecord:
    """What is known so far of one request.

    Attributes:
        stages: in the order of time. A request that was refused or given up has those that it came to.
        trace: its span (``service.telemetry.tracing.RequestSpan``), None where nothing is traced.
    """

    stages: list[Stage] = field(default_factory=list)
    trace: Any = None

    @contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
        """Time what is done inside as a stage, also where it fails."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.stages.append(Stage(name, begun, time.monotonic()))

    @contextmanager
    def stages_of(self, ticket: Ticket) -> Iterator[None]:
        """Note the stages of a ticket that is answered, fails or is given up inside."""
        try:
            yield
        finally:
            now = time.monotonic()
            started = now if ticket.started is None else ticket.started
            self.stages.append(Stage("queue", ticket.submitted, started))
            if ticket.started is not None:
                self.stages.append(Stage("compute", started, ticket.finished or now))

    @property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage by name."""
        return {stage.name: (stage.ended - stage.begun) * 1000 for stage in self.stages}


def record_of(request: Request) -> RequestRecord:
    """Return the record of a request that is being served."""
    record: RequestRecord = request.state.record
    return record


def note(request: Request, **fields: object) -> None:
    """Add fields to a request's line in the log. Never prompt text."""
    request.state.log_fields = {**getattr(request.state, "log_fields", {}), **fields}
