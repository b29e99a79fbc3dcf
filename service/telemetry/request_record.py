"""The record of a request while it is served: its stages and its log fields. For the log and the traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fastapi import Request

StageName = Literal["tokenize", "queue", "compute"]
STAGES: tuple[StageName, ...] = get_args(StageName)


@dataclass(frozen=True)
class Stage:
    """One part of a request's time, from ``begun`` to ``ended`` (``time.monotonic`` seconds)."""

    name: StageName
    begun: float
    ended: float

    @property
    def ms(self) -> float:
        return (self.ended - self.begun) * 1000


@dataclass
class RequestRecord:
    """The record of one request so far.

    Attributes:
        stages: in the order of time. A request that was refused or given up has those that it came to.
        fields: of its line in the log. Never prompt text.
        trace: its span (``service.telemetry.tracing.RequestSpan``), None where nothing is traced.
    """

    stages: list[Stage] = field(default_factory=list)
    fields: dict[str, object] = field(default_factory=dict)
    trace: Any = None

    @property
    def stages_ms(self) -> dict[str, float]:
        return {stage.name: stage.ms for stage in self.stages}


def record_of(request: Request) -> RequestRecord:
    """Return the record of a request that is being served."""
    record: RequestRecord = request.state.record
    return record


def note(request: Request, **fields: object) -> None:
    """Add fields to a request's line in the log. Never prompt text."""
    record_of(request).fields.update(fields)
