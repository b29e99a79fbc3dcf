"""text-embeddings-inference under /tei, for clients with that base address: its OpenAPI description of 1.7.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from pydantic import TypeAdapter

from service.http.answers import listed
from service.http.body import JsonBodyRoute
from service.http.calls import Call, of_texts
from service.http.openapi import API_VERSION, SCORING_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.dependencies import ArtifactsDep, ScorerDep, SettingsDep
from service.http.routes.health import ReadyDep
from service.http.routes.predict import PredictingDep
from service.http.schemas.predict import PredictOptions
from service.http.schemas.tei import (
    TeiClassifier,
    TeiErrorResponse,
    TeiInfo,
    TeiModelType,
    TeiPrediction,
    TeiPredictRequest,
)
from service.scoring.tokenizing import TOKENIZE_THREADS

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

_LABELS = TypeAdapter(list[TeiPrediction])
router = APIRouter(tags=["protocols"], route_class=JsonBodyRoute)


@router.post(
    "/tei/predict",
    responses=error_responses(*SCORING_ERRORS, model=TeiErrorResponse),
    response_model=list[TeiPrediction] | list[list[TeiPrediction]],
)
async def tei_predict(body: TeiPredictRequest, predicting: PredictingDep) -> Response:
    """Classify texts, as text-embeddings-inference does: of a batch a list for each input, else one list."""
    sequences = body.inputs.sequences
    options = PredictOptions(truncate=bool(body.truncate))
    call = Call(of_texts(sequences, "inputs"), len(sequences), None, options, has_prediction_ids=False)
    answered = await predicting.answer(call)
    rows = (_LABELS.dump_json(_labels(one, raw_scores=body.raw_scores)) for one, _ in answered.rows())
    return answered.response(listed(rows) if body.inputs.batch else rows)


@router.head("/tei/health", include_in_schema=False)
@router.get(
    "/tei/health",
    response_class=Response,
    responses=error_responses("device_stalled", *STATE_ERRORS, model=TeiErrorResponse),
)
async def tei_health(active: ReadyDep) -> None:
    """Readiness, as text-embeddings-inference says it: 200 without a body, or 503."""


@router.get("/tei/info", responses=error_responses(*STATE_ERRORS, model=TeiErrorResponse))
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


def _labels(prediction: Prediction, *, raw_scores: bool) -> list[TeiPrediction]:
    """Return the labels by falling score; of equal ones the last first, as TEI has it."""
    scores = (prediction.logit_mean if raw_scores else prediction.arrays.probs).tolist()
    pairs = sorted(zip(scores, prediction.labels, strict=True), key=lambda pair: pair[0])
    return [TeiPrediction(score=score, label=label) for score, label in reversed(pairs)]
