"""text-embeddings-inference's GET /info. Its POST /predict is in ``predict``."""

from __future__ import annotations

from fastapi import APIRouter

from service.http.openapi import API_VERSION, STATE_ERRORS, error_responses
from service.http.routes.dependencies import ArtifactsDep, ScorerDep, SettingsDep
from service.http.schemas.tei import TeiClassifier, TeiErrorResponse, TeiInfo, TeiModelType
from service.scoring.tokenizing import TOKENIZE_THREADS

router = APIRouter(tags=["protocols"])


@router.get("/info", responses=error_responses(*STATE_ERRORS, model=TeiErrorResponse))
async def tei_info(artifacts: ArtifactsDep, scorer: ScorerDep, settings: SettingsDep) -> TeiInfo:
    """The active artifact and this server's limits, as text-embeddings-inference describes itself."""
    model = artifacts.require_taking()
    artifact = model.artifact
    labels = artifact.manifest.labels
    return TeiInfo(
        model_id=artifact.name,
        model_sha=artifact.digest,
        model_dtype=artifact.manifest.base.dtype,
        model_type=TeiModelType(
            classifier=TeiClassifier(
                id2label={str(i): label for i, label in enumerate(labels)},
                label2id={label: i for i, label in enumerate(labels)},
            )
        ),
        max_concurrent_requests=settings.max_requests,
        max_input_length=model.max_tokens,
        max_batch_tokens=scorer.backend.batch_tokens,
        max_client_batch_size=settings.max_inputs,
        tokenization_workers=TOKENIZE_THREADS,
        version=API_VERSION,
    )
