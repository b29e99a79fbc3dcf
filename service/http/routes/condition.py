"""POST /artifacts/{name}/condition and /artifacts/{name}/condition/undo."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter

from service.artifacts.conditioning import LabelledRow, Wanted
from service.errors import ConditioningOffError
from service.http.body import JsonBodyRoute
from service.http.openapi import BODY_ERRORS, CANDIDATE_ERRORS, STATE_ERRORS, error_responses
from service.http.routes.artifacts import artifact_ref
from service.http.routes.dependencies import ArtifactsDep, ConditionerDep, SettingsDep
from service.http.schemas.condition import (
    ConditionFigures,
    ConditionRequest,
    ConditionResponse,
    UndoRequest,
    UndoResponse,
)
from service.http.schemas.inputs import LabelledInput
from service.settings import Settings

router = APIRouter(tags=["artifacts"], route_class=JsonBodyRoute)

_ERRORS = (
    *BODY_ERRORS,
    "activation_running",
    "artifact_changed",
    "artifact_not_found",
    "artifact_not_loaded",
    "artifact_not_writable",
    "artifacts_full",
    "conditioning_impossible",
    "conditioning_off",
    "load_stuck",
    "load_timeout",
    *CANDIDATE_ERRORS,
    *STATE_ERRORS,
)


@router.post(
    "/artifacts/{name}/condition",
    responses=error_responses(*_ERRORS, "batch_too_large", "conditioning_refused", "device_memory", "invalid_input"),
)
async def condition_artifact(
    name: str, body: ConditionRequest, artifacts: ArtifactsDep, conditioner: ConditionerDep, settings: SettingsDep
) -> ConditionResponse:
    """Let a loaded artifact learn from labelled rows, without training; answers when the new version serves."""
    _require_on(settings)
    artifacts.require_taking()
    await artifacts.require_loaded(name)
    wanted = Wanted(_rows(body.rows), _rows(body.calibration_rows), body.digest, body.force)
    done = await asyncio.wrap_future(conditioner.condition(name, wanted))
    comparison = done.comparison
    assert comparison is not None
    return ConditionResponse(
        artifact=artifact_ref(done.model.artifact),
        previous=done.previous,
        recommended=done.model.recommended,
        rows=comparison.rows,
        folds=comparison.folds,
        before=ConditionFigures(**comparison.before.model_dump()),
        after=ConditionFigures(**comparison.after.model_dump()),
        difference=comparison.difference,
        standard_error=comparison.standard_error,
    )


@router.post("/artifacts/{name}/condition/undo", responses=error_responses(*_ERRORS))
async def undo_condition(
    name: str, body: UndoRequest, artifacts: ArtifactsDep, conditioner: ConditionerDep, settings: SettingsDep
) -> UndoResponse:
    """Put a conditioned artifact back as it was packaged; answers when that version serves."""
    _require_on(settings)
    artifacts.require_taking()
    await artifacts.require_loaded(name)
    done = await asyncio.wrap_future(conditioner.undo(name, body.digest))
    return UndoResponse(artifact=artifact_ref(done.model.artifact), previous=done.previous)


def _require_on(settings: Settings) -> None:
    if not settings.conditioning:
        raise ConditioningOffError("this server learns from no labels: it was started without --conditioning true")


def _rows(given: Sequence[LabelledInput]) -> list[LabelledRow]:
    return [LabelledRow(one.template_fields, one.label, one.id) for one in given]
