"""POST, GET and DELETE /suggest/recent: inputs that POST /predict answered lately, where the server keeps some."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from service.errors import RecentInputsOffError
from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import (
    ArtifactsDep,
    CallerDep,
    MeasureThreadsDep,
    RecentDep,
    ScorerDep,
    SettingsDep,
)
from service.http.routes.planning import PlanningDep
from service.http.routes.suggest import choose
from service.http.schemas.base import Timing
from service.http.schemas.inputs import Input
from service.http.schemas.recent import RecentForgotten, RecentInput, RecentRequest, RecentResponse
from service.http.schemas.suggest import Reasons, SuggestOptions, SuggestRequest
from service.recent.inputs import RecentInputs

router = APIRouter(tags=["recent"], route_class=JsonBodyRoute)

_LINES: dict[str, Any] = {
    "description": "One input a line, as a JSON object.",
    "content": {
        "application/jsonl": {
            "schema": {"type": "string", "format": "binary", "description": "One JSON object a line."}
        }
    },
}


@router.post("/suggest/recent", responses=error_responses(*SCORING_ERRORS, "recent_inputs_off"))
async def suggest_recent(
    body: RecentRequest,
    caller: CallerDep,
    recent: RecentDep,
    artifacts: ArtifactsDep,
    settings: SettingsDep,
    planning: PlanningDep,
    scorer: ScorerDep,
    measure_threads: MeasureThreadsDep,
) -> RecentResponse:
    """Choose which inputs that POST /predict answered lately to label next: of yours, or with scope admin of all.

    They are chosen as by POST /suggest. Looked at are at most `max_inputs` of those that are kept.
    """
    _require_on(recent)
    async with artifacts.lease(body.artifact) as predictor:
        artifact = predictor.artifact
    lines = await run_in_threadpool(recent.lines, artifact.digest, caller.sees, settings.max_inputs)
    if not lines:
        nothing = Timing(queue=0, tokenize=0, compute=0, total=0)
        return RecentResponse(
            artifact=artifact_ref(artifact), rows=0, repeated=0, unfamiliar=0, inputs=[], timing_ms=nothing
        )
    kept = [json.loads(line) for line in lines]
    # They were answered, cut or not: none is refused for its length now.
    options = SuggestOptions(**body.options.model_dump(), truncate=True)
    inputs = [Input(**fields) for fields in kept]
    request = SuggestRequest(inputs=inputs, artifact=artifact.name, options=options)
    found, chosen_by, timing = await choose(request, planning, scorer, measure_threads)
    reasons = found.reasons()
    return RecentResponse(
        artifact=chosen_by,
        rows=len(kept),
        repeated=found.repeated,
        unfamiliar=found.unfamiliar,
        inputs=[RecentInput(**kept[why.pop("row")], suggested=Reasons(**why)) for why in reasons],
        timing_ms=timing,
    )


@router.get(
    "/suggest/recent",
    response_class=Response,
    responses={
        200: _LINES,
        **error_responses(
            *STATE_ERRORS, "artifact_not_found", "artifact_not_loaded", "invalid_request", "recent_inputs_off"
        ),
    },
)
async def list_recent(
    caller: CallerDep,
    recent: RecentDep,
    artifacts: ArtifactsDep,
    artifact: Annotated[
        str | None,
        Query(max_length=256, description="Name of the loaded artifact that answered; unset: the active one."),
    ] = None,
) -> Response:
    """The inputs kept of those that POST /predict answered lately, as JSON Lines: yours, or with scope admin all.

    The file is a pool for `python -m training suggest`.
    """
    _require_on(recent)
    async with artifacts.lease(artifact) as predictor:
        digest = predictor.artifact.digest
    lines = await run_in_threadpool(recent.lines, digest, caller.sees)
    return Response(b"".join(line + b"\n" for line in lines), media_type="application/jsonl")


@router.delete("/suggest/recent", responses=error_responses("recent_inputs_off"))
async def forget_recent(caller: CallerDep, recent: RecentDep) -> RecentForgotten:
    """Forget the inputs kept of all artifacts: yours, or with scope admin all."""
    _require_on(recent)
    return RecentForgotten(forgotten=await run_in_threadpool(recent.forget, caller.sees))


def _require_on(recent: RecentInputs) -> None:
    if not recent.on:
        raise RecentInputsOffError("this server keeps no inputs: it was started without --recent-inputs")
