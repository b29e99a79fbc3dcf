"""vLLM's POST /classify and GET /v1/models, as its ``entrypoints/pooling/classify/protocol.py`` of November 2026."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from fastapi import APIRouter, Response

from laplora.answers.written import written_answer
from laplora.prompts.questions import as_text
from service.http.answers import Answered, listed, opened
from service.http.body import JsonBodyRoute
from service.http.calls import Call, of_texts
from service.http.openapi import SCORING_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import question_out
from service.http.routes.dependencies import ArtifactsDep
from service.http.routes.predict import PredictingDep
from service.http.schemas.predict import PredictOptions
from service.http.schemas.systemone import ALIASES
from service.http.schemas.vllm import (
    ClassifyData,
    ClassifyRequest,
    ClassifyResponse,
    LaploraDetails,
    ModelCard,
    ModelList,
    SystemOneModel,
    UsageInfo,
    VllmErrorResponse,
)
from service.telemetry.logs import request_id

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from service.scoring.model import Model


class _ClassifyRoute(JsonBodyRoute):
    bounded_lists: ClassVar[dict[str, str]] = {"input": "max_inputs"}


router = APIRouter(tags=["protocols"], route_class=_ClassifyRoute)
_SCORING_RESPONSES = error_responses(*SCORING_ERRORS, model=VllmErrorResponse)


@router.post("/classify", responses=_SCORING_RESPONSES, response_model=ClassifyResponse)
@router.post("/v1/classify", responses=_SCORING_RESPONSES, response_model=ClassifyResponse, name="v1_classify")
async def classify(body: ClassifyRequest, predicting: PredictingDep) -> Response:
    """Classify texts, as vLLM does."""
    answered = await predicting.answer(_call_of(body))
    return answered.response(_body(body, answered, request_id.get()))


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
                question=question_out(model.artifact.manifest),
            )
            for model in models
        ],
        models=_listed(models),
    )


def _listed(models: Sequence[Model]) -> list[SystemOneModel]:
    """Return the models by the names that POST /v1/systemone takes."""
    manifests = {model.artifact.name: model.artifact.manifest for model in models}
    questions = {name: question_out(manifest) for name, manifest in manifests.items()}
    said = {name: f"{q.type}: {as_text(q.instructions or '')}" if q else "no question" for name, q in questions.items()}
    days = {name: manifest.created[:10] for name, manifest in manifests.items()}
    aliases = {alias: "whichever loaded artifact has the question" for alias in sorted(ALIASES)}
    return [
        SystemOneModel(name=name, description=what, release_date=days.get(name, max(days.values())))
        for name, what in {**said, **aliases}.items()
    ]


def _call_of(body: ClassifyRequest) -> Call:
    """Return what a request asks."""
    options = PredictOptions(truncate=body.truncate_prompt_tokens is not None)
    return Call(of_texts([(text,) for text in body.input], "input"), len(body.input), body.model, options)


def _body(body: ClassifyRequest, answered: Answered, request_id: str) -> Iterator[bytes]:
    """Yield the answer to a request."""
    tokens = sum(prediction.tokens for prediction in answered.predictions)
    head = ClassifyResponse(
        id=f"classify-{body.request_id or request_id}",
        created=int(time.time()),
        model=answered.head.artifact.name,
        data=[],
        usage=UsageInfo(prompt_tokens=tokens, total_tokens=tokens),
    )
    yield opened(head, "data")
    logits = body.use_activation is False
    rows = (_data(i, *row, logits=logits) for i, row in enumerate(answered.rows()))
    yield from listed(row.model_dump_json().encode() for row in rows)
    yield b"}"


def _data(index: int, prediction: Prediction, prediction_id: str | None, *, logits: bool) -> ClassifyData:
    p, stds, written = prediction, prediction.arrays.probs_std, written_answer(prediction, {})
    details = {name: value for name, value in written.items() if name in LaploraDetails.model_fields} | {
        "probs_std": None if stds is None else stds.tolist(),
        "epistemic": p.epistemic,
        "aleatoric": p.aleatoric,
        "labels": p.labels_present,
        "prediction_id": prediction_id,
    }
    return ClassifyData(
        index=index,
        label=p.label,
        probs=(p.logit_mean if logits else p.arrays.probs).tolist(),
        num_classes=len(p.labels),
        laplora=LaploraDetails.model_validate(details),
    )
