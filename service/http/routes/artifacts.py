"""GET /artifacts and /artifacts/{name}/report, and POST /artifacts/{name}/load, /activate and /unload."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from laplora.artifact.label_changes import history_of
from laplora.artifact.report_page import has_report
from laplora.errors import LaploraError
from laplora.prompts.questions import text_fields
from laplora.prompts.templates import MODEL_PROBS
from service.artifacts.host import Change
from service.artifacts.shelf import Place
from service.http.openapi import STATE_ERRORS, error_responses
from service.http.routes.changes import BeginDep, begins
from service.http.routes.dependencies import ArtifactsDep, ChangesDep
from service.http.schemas.artifacts import (
    ActivateResponse,
    ArtifactRef,
    ArtifactsResponse,
    ArtifactSummary,
    LoadResponse,
    MeasuredSetsOut,
    PredictionSetsOut,
    QuestionOut,
    RecommendedOut,
    ReversePassOut,
    TokenBudgetOut,
    UnloadResponse,
    WeightsOut,
)
from service.http.schemas.changes import ChangeOut
from service.scoring.model import TokenBudget

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact
    from laplora.artifact.manifest import Manifest

router = APIRouter(tags=["artifacts"])
#: Bytes of a report that are given to a connection at once: what it does not take yet is copied for it.
_PART_BYTES = 2**14


#: The errors that refuse a change at once. Its status reports later ones.
_CHANGE_ERRORS = (
    "activation_running",
    "artifact_corrupt",
    "artifact_incompatible",
    "artifact_not_found",
    "artifacts_full",
    "load_stuck",
    "load_timeout",
    *STATE_ERRORS,
)


@router.get("/artifacts")
async def list_artifacts(artifacts: ArtifactsDep) -> ArtifactsResponse:
    """The loaded artifacts, the active one first, and the others of the artifacts root."""
    active = artifacts.active
    name = None if active is None else active.artifact.name
    return ArtifactsResponse(
        active=name,
        artifacts=[
            _summary(item_name, item, place, name, None if place is None else artifacts.budget_of(place.model))
            for item_name, item, place in await artifacts.listed()
        ],
    )


@router.get(
    "/artifacts/{name}/report",
    response_class=Response,
    responses={
        200: {"description": "An HTML page.", "content": {"text/html": {"schema": {"type": "string"}}}},
        **error_responses("artifact_not_found", "artifact_corrupt", "artifact_incompatible", "report_not_found"),
    },
)
async def artifact_report(name: str, artifacts: ArtifactsDep) -> StreamingResponse:
    """The page that an artifact brings along: whether to ship it, and why. It runs no script."""
    content = await artifacts.report_of(name)
    headers = {"content-length": str(len(content))}
    return StreamingResponse(_in_parts(content), media_type="text/html; charset=utf-8", headers=headers)


@router.post("/artifacts/{name}/load", **begins(*_CHANGE_ERRORS))
async def load_artifact(name: str, artifacts: ArtifactsDep, begin: BeginDep) -> ChangeOut:
    """Load and verify an artifact beside the others, for requests that name it: once the change has succeeded."""
    artifacts.require_taking()
    return await begin("load", name, "", partial(artifacts.change, name, False), _loaded)


@router.post("/artifacts/{name}/activate", **begins(*_CHANGE_ERRORS))
async def activate_artifact(name: str, artifacts: ArtifactsDep, begin: BeginDep) -> ChangeOut:
    """Make an artifact the default one, which answers requests that name none; a broken one changes nothing."""
    artifacts.require_taking()
    return await begin("activate", name, "", partial(artifacts.change, name, True), activated)


@router.post(
    "/artifacts/{name}/unload",
    responses=error_responses("artifact_not_found", "artifact_not_loaded", "artifact_active", *STATE_ERRORS),
)
async def unload_artifact(name: str, artifacts: ArtifactsDep, changes: ChangesDep) -> UnloadResponse:
    """Take an artifact off memory: it gets no new requests, and those under way are still answered."""
    artifacts.require_taking()
    await artifacts.require_loaded(name)
    model = await run_in_threadpool(artifacts.unload, name)
    await changes.tell()
    return UnloadResponse(artifact=artifact_ref(model.artifact))


def _loaded(change: Change) -> LoadResponse:
    return LoadResponse(artifact=artifact_ref(change.model.artifact), unloaded=list(change.unloaded))


def activated(change: Change) -> ActivateResponse:
    """Return the result of an activation."""
    return ActivateResponse(
        artifact=artifact_ref(change.model.artifact), previous=change.previous, unloaded=list(change.unloaded)
    )


async def _in_parts(content: bytes) -> AsyncIterator[memoryview]:
    for start in range(0, len(content), _PART_BYTES):
        yield memoryview(content)[start : start + _PART_BYTES]


def artifact_ref(artifact: Artifact) -> ArtifactRef:
    """Return how answers name an artifact."""
    manifest = artifact.manifest
    return ArtifactRef(
        name=artifact.name, digest=artifact.digest, base_model=manifest.base_model, quantization=manifest.quantization
    )


def template_fields(artifact: Artifact) -> list[str]:
    """Return the names of the fields an input of this artifact has."""
    return list(artifact.manifest.template.template().fields)


def given_fields(artifact: Artifact) -> list[str]:
    """Return the names of further fields that an input may bring along."""
    return [MODEL_PROBS] if artifact.manifest.template.answered is not None else []


def question_out(manifest: Manifest) -> QuestionOut | None:
    """Return the question of an artifact as clients have to send it; None: it answers none."""
    answers = manifest.answers
    if answers is None:
        return None
    asked, (fewest, most) = answers.asked, answers.option_counts
    return QuestionOut(
        type=asked.type,
        instructions=asked.instructions,
        criteria=answers.criteria,
        fewest_options=fewest,
        most_options=most,
        labels=list(answers.labels),
        state=asked.state or {name: name for name in text_fields(answers.template)},
    )


def _summary(
    name: str, item: Artifact | LaploraError, place: Place | None, active: str | None, budget: TokenBudget | None
) -> ArtifactSummary:
    """Return how an artifact is listed, with its place and token budget if it is loaded; ``active`` is a name."""
    if isinstance(item, LaploraError):
        unknown: dict[str, Any] = dict.fromkeys(ArtifactSummary.model_fields)
        return ArtifactSummary(**unknown | {"name": name, "active": False, "loaded": False, "error": str(item)})
    weights = None if place is None else place.model.weights
    reverse = None if place is None else place.model.reverse_pass
    return ArtifactSummary(
        **artifact_ref(item).model_dump(),
        active=place is not None and place.name == active,
        loaded=place is not None,
        requests=None if place is None else place.leases,
        memory_bytes=None if place is None else place.size_bytes,
        labels=list(item.manifest.labels),
        label_changes=json.loads(json.dumps(history_of(item.manifest)), parse_constant=lambda constant: None),
        fields=template_fields(item),
        corrects=item.manifest.template.answered,
        question=question_out(item.manifest),
        predictives=list(item.manifest.servable),
        recommended=RecommendedOut.model_validate(item.manifest.recommended.model_dump()),
        # Numbers that are not finite become null: a manifest's free-form part may hold it, an answer may not.
        metrics=json.loads(json.dumps(item.manifest.metrics), parse_constant=lambda constant: None),
        prediction_sets=_prediction_sets(item.manifest),
        weights=None if weights is None else WeightsOut(held=weights.held, reason=weights.reason),
        report=f"/artifacts/{quote(name, safe='')}/report" if has_report(item) else None,
        reverse_pass=None if reverse is None else ReversePassOut(kind=reverse.kind, reason=reverse.reason),
        token_budget=None if budget is None else TokenBudgetOut(tokens=budget.tokens, reason=budget.reason),
        error=None,
    )


def _prediction_sets(manifest: Manifest) -> PredictionSetsOut:
    """Return what an artifact's prediction sets promise, and what its manifest, whose metrics are free, has of them."""
    each = len(manifest.labels) if manifest.likelihood == "bernoulli" else 1
    measured = {}
    for name in manifest.servable:
        try:
            of = manifest.metrics[name]
            measured[str(name)] = MeasuredSetsOut(
                empirical_coverage=of["set_coverage"], mean_size=of["set_mean_size"], rows=of["rows"] // each
            )
        except (KeyError, TypeError, ValidationError):
            continue
    calibration = manifest.calibration
    return PredictionSetsOut(
        nominal_coverage=calibration.coverage, calibration_rows=calibration.rows, measured=measured
    )
