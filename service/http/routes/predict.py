"""POST /predict."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic import ValidationError

from service.errors import UnscorableInputError
from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.schemas.base import Timing
from service.http.schemas.inputs import Input
from service.http.schemas.predict import PredictionOut, PredictiveRef, PredictOptions, PredictRequest, PredictResponse
from service.scoring.engine import Ask
from service.scoring.state import (
    Scored,
    ServiceState,
    check_inputs,
    deadline_of,
    lease,
    score,
    what_is_asked,
    while_awaited,
)
from service.security.callers import caller_of
from service.telemetry.request_record import note, record_of

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/predict", responses=error_responses(*SCORING_ERRORS), response_model_exclude_unset=True)
async def predict(body: PredictRequest, request: Request) -> PredictResponse:
    """Classify inputs: probabilities of MAP and of the predictive asked for, uncertainty, flags and a decision."""
    begun = time.monotonic()
    state: ServiceState = request.app.state.service
    deadline = deadline_of(state, begun, body.options.timeout_s)
    async with lease(state, body.artifact) as predictor:
        check_inputs(state, body.inputs, order_average=body.options.order_average)
        ask = what_is_asked(predictor, body.options)
        note_asked(request, predictor, ask)
        work = score(
            state,
            predictor,
            [item.template_fields for item in body.inputs],
            ask=ask,
            truncate=body.options.truncate,
            order_average=body.options.order_average,
            deadline=deadline,
            caller=caller_of(request),
            record=record_of(request),
        )
        scored = await while_awaited(request, work, deadline=deadline)
        answers, target_risk = predictor.decided(scored.predictions, body.options.target_risk)
        predictions = [
            prediction_out(i, item, prediction, body.options)
            for i, (item, prediction) in enumerate(zip(body.inputs, answers, strict=True))
        ]
        if state.feedback.on:
            asked_for = f"{ask.predictive}_order_average" if body.options.order_average else ask.predictive
            ids = state.feedback.remember(predictor, asked_for, caller_of(request).name, answers, target_risk)
            for prediction, prediction_id in zip(predictions, ids, strict=True):
                prediction.prediction_id = prediction_id
        timing = timing_of(scored, begun)
        record(request, timing, rows=len(predictions), tokens=sum(p.tokens for p in scored.predictions))
        state.metrics.count_answers(predictor.artifact.name, ask.predictive, answers)
        recommended = predictor.artifact.manifest.recommended
        return PredictResponse(
            artifact=artifact_ref(predictor.artifact),
            predictive=PredictiveRef(
                name=ask.predictive, recommended=recommended.predictive, reason=recommended.reason
            ),
            target_risk=target_risk,
            predictions=predictions,
            timing_ms=timing,
        )


def prediction_out(index: int, item: Input, prediction: Prediction, options: PredictOptions) -> PredictionOut:
    """Return one prediction as the contract writes it.

    Raises:
        UnscorableInputError: a number in it is not finite, or is no probability.
    """
    p = prediction

    def by_label(values: list[float]) -> dict[str, float]:
        return dict(zip(p.labels, values, strict=True))

    label = p.labels[p.label_index]
    choices = item.template_fields.get("choices")
    has_spread = p.total is not None and p.aleatoric is not None and p.epistemic is not None
    # Only what is set is sent: an id that was not given and a covariance that was not asked for are left out.
    optional: dict[str, object] = {} if item.id is None else {"id": item.id}
    if options.covariance:
        optional["logit_covariance"] = p.logit_covariance
    parts = {"total": p.total, "aleatoric": p.aleatoric, "epistemic": p.epistemic}
    if p.order_information is not None:
        optional["orders"] = p.orders
        parts["order"] = p.order_information
    try:
        return PredictionOut.model_validate(
            {
                **optional,
                "label": label,
                "label_text": choices[p.label_index] if isinstance(choices, list) else label,
                "answered_by": p.predictive,
                "map_probs": by_label(p.map_probs),
                "probs": by_label(p.probs),
                "probs_std": None if p.probs_std is None else by_label(p.probs_std),
                "calibrated_probs": {name: by_label(probs) for name, probs in p.calibrated_probs.items()},
                "logit_mean": p.logit_mean,
                "logit_variance": p.logit_variance,
                "uncertainty": parts if has_spread else None,
                "label_mass": p.label_mass,
                "score": p.score,
                "prediction_set": list(p.prediction_set),
                "flags": list(p.flags),
                "decision": p.decision,
                "tokens": p.tokens,
                "truncated": p.truncated,
            }
        )
    except ValidationError:
        raise UnscorableInputError(
            f"the model has no finite answer for input {index}: change or leave out that input",
            field=f"inputs.{index}",
        ) from None


def timing_of(scored: Scored, begun: float) -> Timing:
    """Return where the time since ``begun`` went."""
    return Timing(
        queue=scored.queue_ms,
        tokenize=scored.tokenize_ms,
        compute=scored.compute_ms,
        total=(time.monotonic() - begun) * 1000,
    )


def record(request: Request, timing: Timing, *, rows: int, tokens: int) -> None:
    """Put a scored request's stages into the metrics and the log."""
    stages = timing.model_dump()
    state: ServiceState = request.app.state.service
    state.metrics.count_stages(request.scope["route"].path, stages)
    note(request, rows=rows, tokens=tokens, **{f"{name}_ms": round(value, 3) for name, value in stages.items()})


def note_asked(request: Request, predictor: Predictor, ask: Ask) -> None:
    """Put what a request asks for into its line in the log, whatever becomes of it."""
    note(request, artifact=predictor.artifact.name, digest=predictor.artifact.digest, predictive=ask.predictive)
