"""GET /artifacts and POST /artifacts/{name}/activate."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from laplora.errors import LaploraError
from service.openapi import CANDIDATE_ERRORS, STATE_ERRORS, error_responses
from service.schemas import (
    ActivateResponse,
    ArtifactRef,
    ArtifactsResponse,
    ArtifactSummary,
    RecommendedOut,
    WeightsOut,
)
from service.scoring import ServiceState, choose_predictor

if TYPE_CHECKING:
    from laplora.artifact import Artifact

router = APIRouter(tags=["artifacts"])


@router.get("/artifacts")
async def list_artifacts(request: Request) -> ArtifactsResponse:
    """The active artifact, and those of the artifacts root that can be activated."""
    state: ServiceState = request.app.state.service
    active = state.host.active
    name = None if active is None else active.artifact.name
    known = await run_in_threadpool(state.host.known)
    weights = None if active is None else WeightsOut(held=active.weights.held, reason=active.weights.reason)
    return ArtifactsResponse(
        active=name, artifacts=[_summary(found, item, weights if found == name else None) for found, item in known]
    )


@router.post(
    "/artifacts/{name}/activate",
    responses=error_responses("artifact_not_found", "activation_running", *CANDIDATE_ERRORS, *STATE_ERRORS),
)
async def activate_artifact(name: str, request: Request) -> ActivateResponse:
    """Load, verify and swap in an artifact; answers when it serves. A broken one is refused and the old one stays."""
    state: ServiceState = request.app.state.service
    choose_predictor(state, None)
    predictor, previous = await asyncio.wrap_future(state.host.activate_in_background(name))
    return ActivateResponse(artifact=artifact_ref(predictor.artifact), previous=previous)


def artifact_ref(artifact: Artifact) -> ArtifactRef:
    """Return how answers name an artifact."""
    manifest = artifact.manifest
    return ArtifactRef(
        name=artifact.name,
        digest=artifact.digest,
        base_model=manifest.base_model,
        quantization=manifest.quantization,
    )


def template_fields(artifact: Artifact) -> list[str]:
    """Return the names of the fields an input of this artifact has."""
    return list(artifact.manifest.template.template().fields)


def _finite(value: Any) -> Any:
    """Return a JSON value with null in place of NaN and infinity, which a manifest's free-form part may hold."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(name: str, item: Artifact | LaploraError, weights: WeightsOut | None) -> ArtifactSummary:
    """Return how an artifact is listed; ``weights`` are the active one's."""
    if isinstance(item, LaploraError):
        return ArtifactSummary(
            name=name,
            active=False,
            digest=None,
            base_model=None,
            quantization=None,
            labels=None,
            fields=None,
            predictives=None,
            recommended=None,
            metrics=None,
            weights=None,
            error=str(item),
        )
    ref = artifact_ref(item)
    return ArtifactSummary(
        **ref.model_dump(),
        active=weights is not None,
        labels=list(item.manifest.labels),
        fields=template_fields(item),
        predictives=list(item.manifest.servable),
        recommended=RecommendedOut.model_validate(item.manifest.recommended.model_dump()),
        metrics=_finite(item.manifest.metrics),
        weights=weights,
        error=None,
    )
