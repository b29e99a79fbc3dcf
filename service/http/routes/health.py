"""GET /health/live, /health/ready, and the Open Inference Protocol's /v2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends

from laplora.errors import ArtifactNotFoundError
from service.errors import DrainingError
from service.http.openapi import STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref, template_fields
from service.http.routes.dependencies import ArtifactsDep, LifecycleDep, ScorerDep
from service.http.schemas.health import LiveResponse, ReadyResponse, V2Live, V2Model, V2Ready, V2Tensor

if TYPE_CHECKING:
    from laplora.predictor import Predictor

router = APIRouter(tags=["health"])


async def _ready(artifacts: ArtifactsDep, lifecycle: LifecycleDep, scorer: ScorerDep) -> Predictor:
    """Return the active predictor, if new requests are to be sent here.

    Raises:
        DeviceFaultError, DeviceStalledError, DrainingError, NotReadyError: they are not.
    """
    predictor = artifacts.require_taking()
    if lifecycle.leaving:
        raise DrainingError("the server is about to stop: send new requests elsewhere")
    scorer.device.health.require_responsive()
    return predictor


ReadyDep = Annotated[Any, Depends(_ready)]


@router.get("/health/live")
async def health_live() -> LiveResponse:
    """Whether the process answers; true from the start until it leaves, whatever the artifact and the device do."""
    return LiveResponse(status="live")


@router.get("/health/ready", responses=error_responses("device_stalled", *STATE_ERRORS))
async def health_ready(active: ReadyDep, artifacts: ArtifactsDep) -> ReadyResponse:
    """Whether new requests are to be sent here: an artifact's real pass and golden replay succeeded, the server is not
    about to stop, the device has not failed, and no run of it is overdue.
    """
    return ReadyResponse(status="ready", artifact=artifact_ref(active.artifact), stuck_load=artifacts.loads.stuck)


@router.get("/v2/health/live")
async def v2_live() -> V2Live:
    """Open Inference Protocol liveness."""
    return V2Live(live=True)


@router.get("/v2/health/ready", responses=error_responses("device_stalled", *STATE_ERRORS))
async def v2_ready(active: ReadyDep) -> V2Ready:
    """Open Inference Protocol readiness."""
    return V2Ready(ready=True)


@router.get("/v2/models/{name}", responses=error_responses("artifact_not_found", *STATE_ERRORS))
async def v2_model(name: str, artifacts: ArtifactsDep) -> V2Model:
    """Open Inference Protocol metadata of a loaded artifact."""
    artifacts.require_taking()
    predictor = artifacts.shelf.find(name)
    if predictor is None:
        raise ArtifactNotFoundError("no loaded artifact of this name: GET /artifacts lists them")
    artifact = predictor.artifact
    row = [-1, len(artifact.manifest.labels)]
    shapes = {"map_probs": row, "probs": row, "probs_std": row, "logit_mean": row, "logit_covariance": [*row, row[1]]}
    return V2Model(
        name=artifact.name,
        versions=[artifact.digest],
        platform="laplora",
        inputs=[V2Tensor(name=field, datatype="BYTES", shape=[-1]) for field in template_fields(artifact)],
        outputs=[V2Tensor(name=output, datatype="FP64", shape=shape) for output, shape in shapes.items()],
    )
