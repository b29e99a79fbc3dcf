"""vLLM's POST /classify and GET /v1/models."""

from __future__ import annotations

import time
from typing import ClassVar

from fastapi import APIRouter

from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, STATE_ERRORS, error_responses
from service.http.protocols import vllm
from service.http.routes.dependencies import ArtifactsDep
from service.http.routes.predicting import PredictingDep
from service.http.schemas.vllm import ClassifyRequest, ClassifyResponse, ModelCard, ModelList, VllmErrorResponse
from service.telemetry.logs import request_id


class _ClassifyRoute(JsonBodyRoute):
    bounded_lists: ClassVar[dict[str, str]] = {"input": "max_inputs"}


router = APIRouter(tags=["protocols"], route_class=_ClassifyRoute)
_SCORING_RESPONSES = error_responses(*SCORING_ERRORS, model=VllmErrorResponse)


@router.post("/classify", responses=_SCORING_RESPONSES)
@router.post("/v1/classify", responses=_SCORING_RESPONSES, name="v1_classify")
async def classify(body: ClassifyRequest, predicting: PredictingDep) -> ClassifyResponse:
    """Classify texts, as vLLM does."""
    return vllm.answer_of(body, await predicting.answer(vllm.call_of(body)), request_id.get())


@router.get("/v1/models", responses=error_responses(*STATE_ERRORS, model=VllmErrorResponse))
async def v1_models(artifacts: ArtifactsDep) -> ModelList:
    """The loaded artifacts, the active one first, as vLLM lists models."""
    artifacts.require_taking()
    now = int(time.time())
    models = [place.model for place in artifacts.shelf.places]
    return ModelList(
        data=[
            ModelCard(
                id=model.artifact.name,
                created=now,
                root=model.artifact.manifest.base_model,
                max_model_len=model.max_tokens,
            )
            for model in models
        ]
    )
