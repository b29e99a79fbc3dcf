"""POST /evaluate, for batches small enough to answer at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from laplora.errors import InvalidInputError, NonFiniteError
from service.errors import UnscorableInputError
from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.predict import note_asked, record, timing_of
from service.http.schemas.evaluate import EvaluateRequest, EvaluateResponse, MethodMetrics
from service.http.schemas.inputs import LabelledInput
from service.scoring.engine import Ask
from service.scoring.evaluation import label_index, measure, method_rows
from service.scoring.state import Scored, ServiceState, check_inputs, deadline_of, lease, score, while_awaited
from service.security.callers import caller_of
from service.telemetry.request_record import record_of

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/evaluate", responses=error_responses(*SCORING_ERRORS))
async def evaluate(body: EvaluateRequest, request: Request) -> EvaluateResponse:
    """Measure every predictive of the artifact on labelled inputs: accuracy, NLL, ECE, Brier, error ranking."""
    begun = time.monotonic()
    state: ServiceState = request.app.state.service
    deadline = deadline_of(state, begun, body.options.timeout_s)
    caller = caller_of(request)
    async with lease(state, body.artifact) as predictor:
        check_inputs(state, body.inputs, order_average=body.options.order_average)
        ask = Ask(predictor.recommended, also=predictor.predictives)
        note_asked(request, predictor, ask)
        labels = [_label_of(i, item, predictor.artifact.manifest.labels) for i, item in enumerate(body.inputs)]

        def measured(scored: Scored) -> dict[str, MethodMetrics]:
            own_order: Sequence[Prediction | None] = scored.own_order or [None] * len(labels)
            pairs = zip(scored.predictions, own_order, strict=True)
            rows = [method_rows(predictor.recommended, averaged, own) for averaged, own in pairs]
            return measure(rows, labels, class_count=predictor.class_count, options=body.options)

        async def work() -> tuple[Scored, dict[str, MethodMetrics]]:
            scored = await score(
                state,
                predictor,
                [item.template_fields for item in body.inputs],
                ask=ask,
                truncate=body.options.truncate,
                order_average=body.options.order_average,
                deadline=deadline,
                caller=caller,
                record=record_of(request),
            )
            try:
                return scored, await state.workers.measure.run(caller.name, partial(measured, scored))
            except NonFiniteError:
                raise UnscorableInputError(
                    "the model has no finite answer for one of the inputs", field="inputs"
                ) from None

        scored, methods = await while_awaited(request, work(), deadline=deadline)
        timing = timing_of(scored, begun)
        record(request, timing, rows=len(labels), tokens=sum(p.tokens for p in scored.predictions))
        return EvaluateResponse(
            artifact=artifact_ref(predictor.artifact), rows=len(labels), methods=methods, timing_ms=timing
        )


def _label_of(index: int, item: LabelledInput, labels: Sequence[str]) -> int:
    try:
        return label_index(item, labels)
    except InvalidInputError as error:
        raise InvalidInputError(f"input {index}: {error}", field=f"inputs.{index}.{error.field}") from None
