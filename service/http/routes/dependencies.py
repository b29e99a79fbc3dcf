"""The parts of the application that endpoints are given. ``service.app`` puts them on ``app.state``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Request

from service.artifacts.conditioning import Conditioner
from service.artifacts.host import ArtifactHost
from service.changes.board import Changes
from service.deployment.feedback import SharedFeedback
from service.feedback.labels import FeedbackStore
from service.http.in_flight import SharedLimit
from service.jobs.board import JobBoard
from service.lifecycle import Lifecycle
from service.scoring.scorer import Scorer
from service.security.callers import Caller, caller_of
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.threads import OneAtATime, OneEach
from service.upstream import UpstreamModel


def _part(name: str) -> Any:
    # A coroutine: FastAPI would call a plain function on a thread.
    async def part(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(part)


async def _caller(request: Request) -> Caller:
    return caller_of(request)


SettingsDep = Annotated[Settings, _part("settings")]
ScorerDep = Annotated[Scorer, _part("scorer")]
ArtifactsDep = Annotated[ArtifactHost, _part("artifacts")]
ConditionerDep = Annotated[Conditioner, _part("conditioner")]
ChangesDep = Annotated[Changes, _part("changes")]
FeedbackDep = Annotated[FeedbackStore, _part("feedback")]
SharedFeedbackDep = Annotated[SharedFeedback, _part("shared_feedback")]
JobsDep = Annotated[JobBoard, _part("jobs")]
MetricsDep = Annotated[Metrics, _part("metrics")]
UpstreamDep = Annotated[UpstreamModel, _part("upstream")]
LifecycleDep = Annotated[Lifecycle, _part("lifecycle")]
#: Downloads of jobs' rows, and reports of jobs, that are being made, and for whom.
DownloadsDep = Annotated[SharedLimit, _part("downloads")]
#: Whose turn it is to have a job's rows in memory for its report, one report at a time.
ReportsDep = Annotated[OneAtATime, _part("reports")]
#: The threads that compute the metrics of POST /evaluate and their bootstrap, one evaluation of each caller at a time.
MeasureThreadsDep = Annotated[OneEach, _part("measure_threads")]
CallerDep = Annotated[Caller, Depends(_caller)]


def idempotency_header(description: str) -> Any:
    """Return the optional header: 1 to 255 visible characters of ASCII; what the same key does again in words."""
    return Header(min_length=1, max_length=255, pattern=r"^[!-~]+$", description=description)
