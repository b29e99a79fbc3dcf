"""GET /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.http.routes.dependencies import MetricsDep

router = APIRouter(tags=["health"])


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
