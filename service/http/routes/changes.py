"""GET /changes and /changes/{change_id}; and what the routes that begin a change have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from service.changes.board import Work
from service.changes.table import Change, Kind
from service.http.openapi import error_responses
from service.http.routes.dependencies import CallerDep, ChangesDep, idempotency_header
from service.http.schemas.changes import ChangeOut, ChangesResponse

router = APIRouter(tags=["artifacts"])
T = TypeVar("T")
Begin = Callable[[Kind, str, str, Work[Any], Callable[[Any], BaseModel]], Awaitable[ChangeOut]]
_LOCATION = {"Location": {"description": "Where the change's status is.", "schema": {"type": "string"}}}


def begins(*codes: str) -> dict[str, Any]:
    """Return what the decorator of a route is given that begins a change, and may refuse it with these codes."""
    errors = error_responses(*codes, "idempotency_conflict", "invalid_request")
    return {"status_code": 202, "responses": {202: {"headers": _LOCATION}, **errors}}


async def _begin(
    response: Response,
    caller: CallerDep,
    changes: ChangesDep,
    idempotency_key: Annotated[
        str | None,
        idempotency_header(
            "Of your choice: the same key again begins nothing, and gives the change, while it is kept."
        ),
    ] = None,
) -> Begin:
    async def begin(kind: Kind, name: str, body: str, work: Work[T], result_of: Callable[[T], BaseModel]) -> ChangeOut:
        change = await changes.begin(kind, name, body, caller.name, idempotency_key, work, result_of)
        response.headers["Location"] = f"/changes/{change.id}"
        return _change_out(change)

    return begin


#: Begins a change of this request's caller, as ``Changes.begin``, and returns the answer.
BeginDep = Annotated[Begin, Depends(_begin)]


@router.get("/changes")
async def list_changes(changes: ChangesDep) -> ChangesResponse:
    """Recent loads, activations and conditionings, on every server that shares this one's jobs."""
    return ChangesResponse(changes=[_change_out(change) for change in await changes.every()])


@router.get("/changes/{change_id}", responses=error_responses("change_not_found", "jobs_unavailable"))
async def get_change(change_id: str, changes: ChangesDep) -> ChangeOut:
    """How a change is, on whichever of the servers that share their jobs it is made."""
    return _change_out(await changes.find(change_id))


def _change_out(change: Change) -> ChangeOut:
    shown = change.model_dump(exclude={"server", "owner", "key", "asked"})
    # Fields of a newer server's results and errors are no part of this one's contract.
    return ChangeOut.model_validate(shown | {"status": change.status}, extra="ignore")
