"""A candidate that answers beside the active artifact: GET /shadow, POST and DELETE /artifacts/{name}/shadow."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from service.errors import ArtifactNotLoadedError
from service.http.body import JsonBodyRoute
from service.http.openapi import BODY_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import ArtifactsDep, ChangesDep
from service.http.schemas.shadow import (
    ShadowDifference,
    ShadowFigures,
    ShadowOut,
    ShadowPair,
    ShadowRequest,
    ShadowResponse,
)
from service.shadow.candidate import Candidate
from service.shadow.terms import Terms

router = APIRouter(tags=["artifacts"], route_class=JsonBodyRoute)


async def _candidate(request: Request) -> Candidate:
    candidate: Candidate = request.app.state.candidate
    return candidate


CandidateDep = Annotated[Candidate, Depends(_candidate)]


@router.get("/shadow")
async def compare_shadow(candidate: CandidateDep) -> ShadowResponse:
    """How the candidate in the shadow compares with the active artifact, in rows that both answered."""
    return ShadowResponse(shadow=await _shown(candidate))


@router.post(
    "/artifacts/{name}/shadow",
    responses=error_responses(
        *BODY_ERRORS, "artifact_not_found", "artifact_not_loaded", "artifact_incompatible", *STATE_ERRORS
    ),
)
async def begin_shadow(
    name: str, body: ShadowRequest, candidate: CandidateDep, artifacts: ArtifactsDep, changes: ChangesDep
) -> ShadowResponse:
    """Let a loaded artifact answer a share of the requests beside the active one, which clients never see."""
    artifacts.require_taking()
    try:
        await artifacts.require_loaded(name)
    except ArtifactNotLoadedError:
        raise ArtifactNotLoadedError(
            "the artifact is not loaded: POST /artifacts/{name}/load, and wait until its change has succeeded"
        ) from None
    with artifacts.shelf.lease(name) as model:
        folder = model.artifact.path.name
    terms = Terms(
        artifact=folder,
        share=body.share,
        better=tuple(dict.fromkeys(body.activate_if_better)),
        confidence=body.confidence,
        since=time.time(),
    )
    candidate.check(terms)
    candidate.begin(terms)
    await changes.tell()
    return ShadowResponse(shadow=await _shown(candidate))


@router.delete("/artifacts/{name}/shadow", responses=error_responses("artifact_not_found", "not_ready"))
async def end_shadow(
    name: str, candidate: CandidateDep, artifacts: ArtifactsDep, changes: ChangesDep
) -> ShadowResponse:
    """Let this candidate answer no more, and return how it compared; null where it is not the candidate."""
    terms = candidate.in_force()
    if terms is None or name != terms.artifact:
        with suppress(ArtifactNotLoadedError):
            await artifacts.require_loaded(name)
        return ShadowResponse(shadow=None)
    last = await _shown(candidate)
    candidate.begin(None)
    await changes.tell()
    return ShadowResponse(shadow=last)


async def _shown(candidate: Candidate) -> ShadowOut | None:
    terms, found = candidate.in_force(), await candidate.compare()
    if terms is None or found is None:
        return None
    active, model, done = found
    seen = done.seen
    accepted = {
        "active": sum(count for (by, _), count in seen.accepted.items() if by),
        "shadow": sum(count for (_, by), count in seen.accepted.items() if by),
        "both": seen.accepted[True, True],
    }
    figures = {"active": done.served, "shadow": done.shadow}
    return ShadowOut(
        artifact=artifact_ref(model.artifact),
        active=artifact_ref(active.artifact),
        share=terms.share,
        since=terms.since,
        activate_if_better=list(terms.better),
        confidence=terms.confidence,
        rows=seen.rows,
        missed=seen.missed.total(),
        agreement=seen.same / seen.rows if seen.rows else None,
        accepted_share={name: count / seen.rows for name, count in accepted.items()} if seen.rows else {},
        labelled=done.labelled,
        figures={name: ShadowFigures(**vars(of)) for name, of in figures.items()},
        differences=[ShadowDifference(**vars(one)) for one in done.differences],
        pairs=[ShadowPair(active=one, shadow=other, rows=rows) for (one, other), rows in done.pairs],
        verdict=done.verdict,
        reason=done.reason,
    )
