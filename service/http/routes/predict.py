"""POST /predict: the body becomes a plan, the plan is scored, its predictions become the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.answers import prediction_out
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import FeedbackDep, MetricsDep, ScorerDep
from service.http.routes.planning import PlanningDep
from service.http.schemas.predict import PredictiveRef, PredictRequest, PredictResponse
from service.scoring.plan import Ask, choose_ask

if TYPE_CHECKING:
    from laplora.predictor import Predictor

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/predict", responses=error_responses(*SCORING_ERRORS), response_model_exclude_unset=True)
async def predict(
    body: PredictRequest, planning: PlanningDep, scorer: ScorerDep, feedback: FeedbackDep, metrics: MetricsDep
) -> PredictResponse:
    """Classify inputs: probabilities of MAP and of the predictive asked for, uncertainty, flags and a decision."""
    options = body.options

    def ask_of(predictor: Predictor) -> Ask:
        return choose_ask(
            predictor,
            mode=options.mode if "mode" in options.model_fields_set else None,
            predictive=options.predictive,
            covariance=options.covariance,
            order_average=options.order_average,
            target_risk=options.target_risk,
        )

    async with planning.plan(body, ask_of) as plan:
        scored = await planning.awaited(plan, scorer.score(plan))
        artifact, predictive = plan.predictor.artifact, plan.ask.predictive
        answers, target_risk = plan.predictor.decided(scored.predictions, options.target_risk)
        predictions = [
            prediction_out(i, item, prediction, options)
            for i, (item, prediction) in enumerate(zip(body.inputs, answers, strict=True))
        ]
        if feedback.on:
            orders = {False: "", True: "_order_average", "all": "_order_average", "reverse": "_reverse_average"}[
                options.order_average
            ]
            watched = f"{predictive}{orders}"
            ids = feedback.remember(plan.predictor, watched, plan.caller, answers, target_risk)
            for prediction, prediction_id in zip(predictions, ids, strict=True):
                prediction.prediction_id = prediction_id
        await planning.keep_inputs(plan)
        metrics.count_answers(artifact.name, predictive, answers)
        recommended = artifact.manifest.recommended
        return PredictResponse(
            artifact=artifact_ref(artifact),
            predictive=PredictiveRef(name=predictive, recommended=recommended.predictive, reason=recommended.reason),
            target_risk=target_risk,
            predictions=predictions,
            timing_ms=planning.timing(plan, tokens=sum(p.tokens for p in scored.predictions)),
        )
