"""GET /health/live, /health/ready, and the Open Inference Protocol's /v2."""

from __future__ import annotations

from fastapi import APIRouter, Request

from laplora.errors import ArtifactNotFoundError
from service.http.openapi import STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref, template_fields
from service.http.schemas.health import LiveResponse, ReadyResponse, V2Live, V2Model, V2Ready, V2Tensor
from service.scoring.state import ServiceState, check_ready, check_taking

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def health_live() -> LiveResponse:
    """Whether the process answers; true from the start until it leaves, whatever the artifact and the device do."""
    return LiveResponse(status="live")


@router.get("/health/ready", responses=error_responses("device_stalled", *STATE_ERRORS))
async def health_ready(request: Request) -> ReadyResponse:
    """Whether new requests are to be sent here: an artifact's real pass and golden replay succeeded, the server is not
    about to stop, the device has not failed, and no run of it is overdue.
    """
    state: ServiceState = request.app.state.service
    return ReadyResponse(
        status="ready", artifact=artifact_ref(check_ready(state).artifact), stuck_load=state.host.stuck_load
    )


@router.get("/v2/health/live")
async def v2_live() -> V2Live:
    """Open Inference Protocol liveness."""
    return V2Live(live=True)


@router.get("/v2/health/ready", responses=error_responses("device_stalled", *STATE_ERRORS))
async def v2_ready(request: Request) -> V2Ready:
    """Open Inference Protocol readiness."""
    check_ready(request.app.state.service)
    return V2Ready(ready=True)


@router.get("/v2/models/{name}", responses=error_responses("artifact_not_found", *STATE_ERRORS))
async def v2_model(name: str, request: Request) -> V2Model:
    """Open Inference Protocol metadata of a loaded artifact."""
    state: ServiceState = request.app.state.service
    check_taking(state)
    predictor = state.host.shelf.find(name)
    if predictor is None:
        raise ArtifactNotFoundError("no loaded artifact of this name: GET /artifacts lists them")
    artifact = predictor.artifact
    classes = len(artifact.manifest.labels)
    return V2Model(
        name=artifact.name,
        versions=[artifact.digest],
        platform="laplora",
        inputs=[V2Tensor(name=field, datatype="BYTES", shape=[-1]) for field in template_fields(artifact)],
        outputs=[
            V2Tensor(name="map_probs", datatype="FP64", shape=[-1, classes]),
            V2Tensor(name="probs", datatype="FP64", shape=[-1, classes]),
            V2Tensor(name="probs_std", datatype="FP64", shape=[-1, classes]),
            V2Tensor(name="logit_mean", datatype="FP64", shape=[-1, classes]),
            V2Tensor(name="logit_covariance", datatype="FP64", shape=[-1, classes, classes]),
        ],
    )
