"""POST /predict, in laplora's shape and in text-embeddings-inference's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.protocols import tei
from service.http.protocols.calls import Call
from service.http.protocols.errors import TEI, mark
from service.http.routes.predicting import PredictingDep
from service.http.schemas.errors import ErrorResponse
from service.http.schemas.predict import PredictRequest, PredictResponse
from service.http.schemas.tei import TeiErrorResponse, TeiPredictRequest


class _PredictRoute(JsonBodyRoute):
    """Takes note of bodies in TEI's shape: their errors are TEI's too."""

    def look_at(self, request: Request, value: Any) -> None:
        if tei.is_tei(value):
            mark(request.scope, TEI)


def _told_by_shape(value: Any, read: ValidatorFunctionWrapHandler) -> PredictRequest | TeiPredictRequest:
    # A union's own errors would name the fields of both.
    return (TeiPredictRequest if tei.is_tei(value) else PredictRequest).model_validate(value)


_Body = Annotated[PredictRequest | TeiPredictRequest, WrapValidator(_told_by_shape)]

router = APIRouter(tags=["scoring"], route_class=_PredictRoute)


@router.post(
    "/predict",
    responses=error_responses(*SCORING_ERRORS, model=ErrorResponse | TeiErrorResponse),
    response_model_exclude_unset=True,
)
async def predict(body: _Body, predicting: PredictingDep) -> PredictResponse | tei.TeiAnswer:
    """Classify inputs: probabilities of MAP and of the predictive asked for, uncertainty, flags and a decision.

    Inputs that are texts, and not objects, are answered as text-embeddings-inference does, errors too.
    """
    if isinstance(body, TeiPredictRequest):
        return tei.answer_of(body, await predicting.answer(tei.call_of(body)))
    return await predicting.answer(Call(lambda fields: body.inputs, len(body.inputs), body.artifact, body.options))
