"""POST /suggest: which of some inputs to label next. Nothing of them is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import ScorerDep, SuggestionsDep
from service.http.routes.planning import PlanningDep
from service.http.schemas.suggest import SuggestedInput, SuggestRequest, SuggestResponse
from service.scoring.suggestion import Choice, suggested
from service.scoring.ticket import Ask

if TYPE_CHECKING:
    from service.scoring.model import Model

router = APIRouter(tags=["scoring"], route_class=JsonBodyRoute)


@router.post("/suggest", responses=error_responses(*SCORING_ERRORS))
async def suggest(
    body: SuggestRequest, planning: PlanningDep, scorer: ScorerDep, turns: SuggestionsDep
) -> SuggestResponse:
    """Choose which inputs to label next: those whose labels together are expected to teach the model most."""

    def ask_of(model: Model) -> Ask:
        return Ask(model.recommended)

    options = body.options
    choice = Choice(options.count, options.method, options.least_familiarity)
    async with planning.plan(body, ask_of) as plan:
        found = await planning.awaited(plan, suggested(scorer, plan, choice, turns))
        return SuggestResponse(
            artifact=artifact_ref(plan.model.artifact),
            rows=len(body.inputs),
            repeated=found.repeated,
            unfamiliar=found.unfamiliar,
            suggested=[SuggestedInput(id=body.inputs[why["row"]].id, **why) for why in found.reasons()],
            timing_ms=planning.timing(plan, tokens=sum(len(row.token_ids) for row in plan.rows)),
        )
