"""POST /artifacts/{name}/condition and /artifacts/{name}/condition/undo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Depends

from service.artifacts.conditioning import Conditioned, LabelledRow, Wanted
from service.errors import ConditioningOffError
from service.http.body import JsonBodyRoute
from service.http.openapi import BODY_ERRORS, STATE_ERRORS
from service.http.routes.artifacts import artifact_ref
from service.http.routes.changes import BeginDep, begins
from service.http.routes.dependencies import ArtifactsDep, ConditionerDep, SettingsDep
from service.http.schemas.changes import ChangeOut
from service.http.schemas.condition import (
    ConditionRequest,
    ConditionResponse,
    UndoRequest,
    UndoResponse,
)
from service.http.schemas.inputs import LabelledInput

router = APIRouter(tags=["artifacts"], route_class=JsonBodyRoute)

_ERRORS = (
    *BODY_ERRORS,
    "activation_running",
    "artifact_changed",
    "artifact_not_found",
    "artifact_not_loaded",
    "artifact_not_writable",
    "conditioning_impossible",
    "conditioning_off",
    "load_stuck",
    "load_timeout",
    *STATE_ERRORS,
)


async def _can_learn(name: str, artifacts: ArtifactsDep, settings: SettingsDep) -> None:
    """Refuse what no body could mend: a server that learns nothing, or an artifact that is not loaded."""
    if not settings.conditioning:
        raise ConditioningOffError("this server learns from no labels: it was started without --conditioning true")
    artifacts.require_taking()
    await artifacts.require_loaded(name)


_CAN = [Depends(_can_learn)]


@router.post("/artifacts/{name}/condition", **begins(*_ERRORS, "batch_too_large", "invalid_input"), dependencies=_CAN)
async def condition_artifact(
    name: str, body: ConditionRequest, conditioner: ConditionerDep, begin: BeginDep
) -> ChangeOut:
    """Let a loaded artifact learn from labelled rows, without training; it succeeds as the new version serves."""
    wanted = Wanted(_rows(body.rows), body.digest, body.force, body.changes)
    work = partial(conditioner.condition, name, wanted)
    return await begin("condition", name, body.model_dump_json(), work, _conditioned)


@router.post("/artifacts/{name}/condition/undo", **begins(*_ERRORS), dependencies=_CAN)
async def undo_condition(name: str, body: UndoRequest, conditioner: ConditionerDep, begin: BeginDep) -> ChangeOut:
    """Put a conditioned artifact back as it was packaged; it succeeds as that version serves."""
    work = partial(conditioner.undo, name, body.digest)
    return await begin("undo_condition", name, body.model_dump_json(), work, _undone)


def _conditioned(done: Conditioned) -> ConditionResponse:
    comparison = done.comparison
    assert comparison is not None
    return ConditionResponse(
        artifact=artifact_ref(done.model.artifact),
        previous=done.previous,
        recommended=done.model.recommended,
        **comparison.model_dump(),
    )


def _undone(done: Conditioned) -> UndoResponse:
    return UndoResponse(artifact=artifact_ref(done.model.artifact), previous=done.previous)


def _rows(given: Sequence[LabelledInput]) -> list[LabelledRow]:
    return [LabelledRow(one.template_fields, one.label, one.id) for one in given]
