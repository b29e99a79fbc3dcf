"""POST /suggest: which of some inputs to label next. Nothing of them is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import MeasureThreadsDep, ScorerDep
from service.http.routes.planning import PlanningDep
from service.http.schemas.suggest import SuggestedInput, SuggestRequest, SuggestResponse
from service.scoring.ticket import Ask

if TYPE_CHECKING:
    from laplora.selection.suggest import Suggestion
    from service.scoring.model import Model

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/suggest", responses=error_responses(*SCORING_ERRORS))
async def suggest(
    body: SuggestRequest, planning: PlanningDep, scorer: ScorerDep, threads: MeasureThreadsDep
) -> SuggestResponse:
    """Choose which inputs to label next: those whose labels are expected to teach the model most."""

    def ask_of(model: Model) -> Ask:
        has_posterior = "laplace" in model.predictives
        return Ask(model.recommended, also=("laplace",) if has_posterior else (), covariance=has_posterior)

    options = body.options
    async with planning.plan(body, ask_of) as plan:

        async def work() -> Suggestion:
            predictions = await scorer.score(plan)

            def telling() -> Suggestion:
                from laplora.selection.suggest import gains_of, most_telling

                gains = gains_of(predictions)
                return most_telling(plan.rows, predictions, gains, options.count, options.least_familiarity)

            return await threads.run(plan.caller, telling)

        suggestion = await planning.awaited(plan, work())
        return SuggestResponse(
            artifact=artifact_ref(plan.model.artifact),
            rows=len(body.inputs),
            repeated=suggestion.repeated,
            unfamiliar=suggestion.unfamiliar,
            suggested=[SuggestedInput(id=body.inputs[why["row"]].id, **why) for why in suggestion.reasons()],
            timing_ms=planning.timing(plan, tokens=sum(len(row.token_ids) for row in plan.rows)),
        )
