"""Every error becomes an answer by the table of ``service.errors``.

Status and headers are the same for all paths; those of decision models' clients have a body of their own shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Scope

from laplora.errors import LaploraError
from service.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    RouteNotFoundError,
    error_content,
    kind_of,
    retry_after_s,
    shown_field,
)
from service.http.meant import meant
from service.http.schemas.errors import ErrorResponse
from service.http.schemas.systemone import SystemOneErrorResponse
from service.telemetry.logs import log_crash, request_id
from service.telemetry.request_record import note

#: How many problems of an invalid body are told of one by one; the others are counted.
_TOLD_PROBLEMS = 16
#: Types of pydantic's errors about a value that is no JSON object; their messages name its own classes.
_NO_OBJECT = frozenset({"dict_type", "model_type", "model_attributes_type"})
#: The paths of decision models' clients.
_SYSTEMONE = frozenset({"/v1/systemone", "/v1/models"})


def schema_of(path: str) -> type[BaseModel]:
    """Return what describes the errors of a path."""
    return SystemOneErrorResponse if path in _SYSTEMONE else ErrorResponse


def _systemone(content: dict[str, Any], status: int) -> dict[str, Any]:
    error = content["error"]
    if status != 422:
        kind = "authentication_error" if status == 401 else error["code"]
        return {"detail": {"error_type": kind, "message": error["message"]}}
    problems = error.get("problems") or [{"field": error.get("field", "body"), "message": error["message"]}]
    # Fields of an input are those of the state, or its options.
    places = [re.sub(r"^inputs\.\d+\.choices\b.*", "questions", problem["field"]) for problem in problems]
    places = [re.sub(r"^inputs\.\d+\b.*", "state", place) for place in places]
    locs = [["body", *(part for part in place.split(".") if place != "body")] for place in places]
    return {
        "detail": [
            {"loc": loc, "msg": problem["message"], "type": error["code"]}
            for loc, problem in zip(locs, problems, strict=True)
        ]
    }


def error_response(error: BaseException, its_id: str | None = None, *, scope: Scope | None = None) -> JSONResponse:
    """Return the answer for an exception, as the error table says; without a request's id it is the present one's.

    Args:
        scope: of the request; None: its path is not known.
    """
    kind, retry = kind_of(error), retry_after_s(error)
    headers = {} if retry is None else {"Retry-After": str(retry)}
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = error_content(error, its_id or request_id.get())
    if scope is not None and scope["path"] in _SYSTEMONE:
        content = _systemone(content, kind.status)
    return JSONResponse(content, kind.status, headers)


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Let an application with these routers answer errors so."""

    async def answer_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return await answer(request, RouteNotFoundError("no endpoint at this path: /docs lists them"))
        if error.status_code != 405:
            return await answer(request, InvalidRequestError(str(error.detail)))
        response = await answer(request, MethodNotAllowedError("the endpoint takes another method: see Allow"))
        # starlette names the methods of the first route at this path; there may be several.
        routes = [route for part in (app.router, *routers) for route in part.routes if isinstance(route, Route)]
        here = [route for route in routes if route.path_regex.match(request.scope["path"])]
        methods = {method for route in here for method in route.methods or ()}
        response.headers["allow"] = ", ".join(sorted(methods)) or (error.headers or {}).get("Allow", "")
        return response

    app.add_exception_handler(LaploraError, answer)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)


async def answer(request: Request, error: Exception) -> JSONResponse:
    kind = kind_of(error)
    request.app.state.metrics.count_reject(kind.code)
    if kind.status == 500:
        log_crash("request failed", error)
    note(request, code=kind.code)
    return error_response(error, scope=request.scope)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    raised = error.errors()
    context = raised[0].get("ctx", {})
    problems = [_problem(one) for one in raised[:_TOLD_PROBLEMS]]
    bounds = (value for name, value in context.items() if name.startswith(("max_", "min_")))
    limit = next((value for value in bounds if isinstance(value, int)), None)
    message = "; ".join(f"{problem['field']}: {problem['message']}" for problem in problems)
    body_field = getattr(request.scope["route"], "body_field", None)
    if body_field is not None:
        likely = meant(error.body, body_field.field_info.annotation)
        message += "" if likely is None else f". Probably meant: {likely}"
    field, got = problems[0]["field"], context.get("actual_length")
    invalid = InvalidRequestError(message, field=field, limit=limit, got=got)
    if len(raised) > 1:
        invalid.problems, invalid.problems_count = problems, len(raised)
    return await answer(request, invalid)


def _problem(error: Any) -> dict[str, str]:
    """Return what is wrong, by place and kind: the input that pydantic keeps beside it is never sent."""
    parts = [str(part) for part in error["loc"] if part != "body" and not str(part).startswith("(")]
    path = shown_field(".".join(parts) or "body")
    message = "Input should be an object of named fields" if error["type"] in _NO_OBJECT else error["msg"]
    if error["type"] == "union_tag_invalid":  # pydantic's message has what was sent
        message = f"{error['ctx']['discriminator']} should be one of {error['ctx']['expected_tags']}"
    return {"field": path[:200], "message": message[:300]}
