"""GET /health, /health/live, /health/ready and /metrics; probes may ask by HEAD."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.backends.readiness import require_ready
from service.http.openapi import STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import ArtifactsDep, LifecycleDep, MetricsDep, ScorerDep
from service.http.schemas.health import LiveResponse, ReadyResponse

router = APIRouter(tags=["health"])


_READY_RESPONSES = error_responses("device_stalled", *STATE_ERRORS)


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def health_live() -> LiveResponse:
    """Whether the process answers; true from the start until it leaves, whatever the artifact and the device do."""
    return LiveResponse(status="live")


@router.head("/health", include_in_schema=False)
@router.head("/health/ready", include_in_schema=False)
@router.get("/health", responses=_READY_RESPONSES, name="health")
@router.get("/health/ready", responses=_READY_RESPONSES)
async def health_ready(artifacts: ArtifactsDep, lifecycle: LifecycleDep, scorer: ScorerDep) -> ReadyResponse:
    """Whether new requests are to be sent here: an artifact's real pass and golden replay succeeded, the server is not
    about to stop, the device has not failed, and no run of it is overdue.
    """
    active = require_ready(artifacts, lifecycle, scorer.backend)
    return ReadyResponse(status="ready", artifact=artifact_ref(active.artifact), stuck_load=artifacts.loads.stuck)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def metrics(metrics: MetricsDep) -> Response:
    """Requests, latency by stage, queue, batches, refusals and calibration in production, for Prometheus."""
    # Not async: figures of calibration take some milliseconds, which answers must not wait for.
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
