"""POST /suggest: which of some inputs to label next. Nothing of them is kept."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from fastapi import APIRouter

from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import MeasureThreadsDep, ScorerDep
from service.http.routes.planning import PlanningDep
from service.http.schemas.suggest import SuggestedInput, SuggestRequest, SuggestResponse
from service.scoring.plan import Ask
from service.scoring.suggestion import suggested

if TYPE_CHECKING:
    from laplora.predictor import Predictor

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/suggest", responses=error_responses(*SCORING_ERRORS))
async def suggest(
    body: SuggestRequest, planning: PlanningDep, scorer: ScorerDep, measure_threads: MeasureThreadsDep
) -> SuggestResponse:
    """Choose which inputs to label next: those whose labels together are expected to teach the model most."""

    def ask_of(predictor: Predictor) -> Ask:
        return Ask(predictor.recommended)

    async with planning.plan(body, ask_of) as plan:
        options = body.options
        work = suggested(
            scorer, plan, options.count, options.method, lambda call: measure_threads.run(plan.caller, call)
        )
        selection, predictions, repeated = await planning.awaited(plan, work)
        gains = selection.gains.tolist()
        return SuggestResponse(
            artifact=artifact_ref(plan.predictor.artifact),
            rows=len(body.inputs),
            repeated=repeated,
            suggested=[
                SuggestedInput(
                    input=place,
                    id=body.inputs[place].id,
                    gain=gain,
                    cumulative_gain=total,
                    label=predictions[place].label,
                    probs=dict(zip(predictions[place].labels, predictions[place].probs, strict=True)),
                    entropy=predictions[place].total,
                )
                for place, gain, total in zip(selection.order.tolist(), gains, accumulate(gains), strict=True)
            ],
            timing_ms=planning.timing(plan, tokens=sum(p.tokens for p in predictions)),
        )
