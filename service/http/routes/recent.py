"""POST, GET and DELETE /suggest/recent: inputs that POST /predict answered lately, where the server keeps some."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from laplora.errors import ConfigError
from service.errors import BatchTooLargeError, InvalidRequestError, RecentInputsOffError
from service.http.body import JsonBodyRoute
from service.http.openapi import SCORING_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import (
    ArtifactsDep,
    CallerDep,
    RecentDep,
    ScorerDep,
    SettingsDep,
    SuggestionsDep,
)
from service.http.routes.planning import PlanningDep
from service.http.routes.suggest import choose
from service.http.schemas.base import Timing
from service.http.schemas.inputs import Input
from service.http.schemas.recent import RecentForgotten, RecentInput, RecentRequest, RecentResponse
from service.http.schemas.suggest import Reasons, SuggestOptions, SuggestRequest
from service.recent.inputs import RecentInputs

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

router = APIRouter(tags=["recent"], route_class=JsonBodyRoute)

#: Least bytes that are sent at once, but for the last.
_PART_BYTES = 64 * 1024

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
    http: Request,
    caller: CallerDep,
    recent: RecentDep,
    artifacts: ArtifactsDep,
    settings: SettingsDep,
    planning: PlanningDep,
    scorer: ScorerDep,
    turns: SuggestionsDep,
) -> RecentResponse:
    """Choose which inputs that POST /predict answered lately to label next: of yours, or with scope admin of all.

    They are chosen as by POST /suggest. Looked at are at most `max_inputs` of those that are kept.
    """
    _require_on(recent)
    async with artifacts.lease(body.artifact) as model:
        artifact = model.artifact
    _check_fields(artifact)
    lines = await run_in_threadpool(recent.lines, artifact.digest, caller.sees, settings.max_inputs)
    if not lines:
        nothing = Timing(queue=0, tokenize=0, compute=0, total=0)
        return RecentResponse(
            artifact=artifact_ref(artifact), rows=0, repeated=0, unfamiliar=0, inputs=[], timing_ms=nothing
        )
    # As a request's own, whose body they might have come in.
    lines = lines[: _that_fit(lines, settings.max_body_bytes)]
    http.state.hold(sum(map(len, lines)))
    kept = [json.loads(line) for line in lines]
    # They were answered, cut or not: none is refused for its length now.
    options = SuggestOptions(**body.options.model_dump(), truncate=True)
    while True:
        inputs = [Input(**fields) for fields in kept]
        request = SuggestRequest(inputs=inputs, artifact=artifact.name, options=options)
        try:
            found, chosen_by, timing = await choose(request, planning, scorer, turns)
            break
        except BatchTooLargeError as error:
            kept = kept[: _fewer(len(kept), error)]
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
    response_class=StreamingResponse,
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
) -> StreamingResponse:
    """The inputs kept of those that POST /predict answered lately, as JSON Lines: yours, or with scope admin all.

    The file is a pool for `python -m training suggest`.
    """
    _require_on(recent)
    async with artifacts.lease(artifact) as model:
        digest = model.artifact.digest
    lines = await run_in_threadpool(recent.lines, digest, caller.sees)
    # In parts: of a client that reads slowly, or not at all, no more is held than the sample that all share.
    return StreamingResponse(_in_parts(lines), media_type="application/jsonl")


@router.delete("/suggest/recent", responses=error_responses("recent_inputs_off"))
async def forget_recent(caller: CallerDep, recent: RecentDep) -> RecentForgotten:
    """Forget the inputs kept of all artifacts: yours, or with scope admin all."""
    _require_on(recent)
    return RecentForgotten(forgotten=await run_in_threadpool(recent.forget, caller.sees))


def _that_fit(lines: Sequence[bytes], most_bytes: int) -> int:
    """Return how many of the first lines have no more bytes than this together, but for one that is larger."""
    return max(1, sum(size <= most_bytes for size in accumulate(map(len, lines))))


def _fewer(count: int, error: BatchTooLargeError) -> int:
    """Return how many inputs a request may have, as so many are too many; raise the error where it is none.

    Nobody can send less of what the server keeps. It comes in a random order, so that any first part of it will do.
    """
    if count == 1 or error.limit is None or error.got is None:
        raise error
    return min(max(1, count * error.limit // error.got), count - 1)


async def _in_parts(lines: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield lines, each with its end, some together."""
    part = bytearray()
    for line in lines:
        part += line + b"\n"
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _check_fields(artifact: Artifact) -> None:
    from laplora.selection.suggest import check_fields

    try:
        check_fields(artifact.manifest.template.template())
    except ConfigError as error:
        raise InvalidRequestError(str(error), field="artifact") from None


def _require_on(recent: RecentInputs) -> None:
    if not recent.on:
        raise RecentInputsOffError("this server keeps no inputs: it was started without --recent-inputs")
