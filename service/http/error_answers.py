"""Every error becomes an answer by the table of ``service.errors``, in the shape of the request's protocol.

Status and headers are the same for all protocols; the path says whose clients read the body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from service.http.schemas.tei import TeiErrorResponse
from service.http.schemas.vllm import VllmErrorResponse
from service.telemetry.logs import log_crash, request_id
from service.telemetry.request_record import note

#: How many problems of an invalid body are told of one by one; the others are counted.
_TOLD_PROBLEMS = 16
#: Types of pydantic's errors about a value that is no JSON object; their messages name its own classes.
_NO_OBJECT = frozenset({"dict_type", "model_type", "model_attributes_type"})


@dataclass(frozen=True)
class ErrorShape:
    """How one protocol writes an error.

    Attributes:
        write: makes the body of laplora's own and the HTTP status.
        model: describes the body.
    """

    write: Callable[[dict[str, Any], int], dict[str, Any]]
    model: type[BaseModel]


def _vllm(content: dict[str, Any], status: int) -> dict[str, Any]:
    detail = content["error"]
    # Their inputs are called input.
    param = re.sub(r"^inputs\b", "input", detail["field"]) if "field" in detail else None
    return {"error": {"message": detail["message"], "type": detail["code"], "param": param, "code": status}}


def _tei(content: dict[str, Any], status: int) -> dict[str, Any]:
    kinds = {429: "Overloaded", 503: "Unhealthy", 500: "Backend", 504: "Backend"}
    return {"error": content["error"]["message"], "error_type": kinds.get(status, "Validation")}


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


_LAPLORA = ErrorShape(lambda content, status: content, ErrorResponse)
#: By the beginning of a path.
_FOREIGN = (
    (re.compile(r"/v1/systemone$"), ErrorShape(_systemone, SystemOneErrorResponse)),
    (re.compile(r"/classify$|/v1(/|$)"), ErrorShape(_vllm, VllmErrorResponse)),
    (re.compile(r"/tei(/|$)"), ErrorShape(_tei, TeiErrorResponse)),
)


def shape_of_path(path: str) -> ErrorShape:
    """Return how errors of a path are written."""
    return next((shape for pattern, shape in _FOREIGN if pattern.match(path)), _LAPLORA)


def error_response(error: BaseException, its_id: str | None = None, *, scope: Scope | None = None) -> JSONResponse:
    """Return the answer for an exception, as the error table says; without a request's id it is the present one's.

    Args:
        scope: of the request, whose path says the shape; None: laplora's.
    """
    kind, retry = kind_of(error), retry_after_s(error)
    headers = {} if retry is None else {"Retry-After": str(retry)}
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    shape = _LAPLORA if scope is None else shape_of_path(scope["path"])
    body = shape.write(error_content(error, its_id or request_id.get()), kind.status)
    return JSONResponse(body, kind.status, headers)


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
    """Return the answer for an error."""
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
    if body_field is not None and shape_of_path(request.scope["path"]) is _LAPLORA:
        likely = meant(error.body, body_field.field_info.annotation)
        message += "" if likely is None else f". Probably meant: {likely}"
    field, got = problems[0]["field"], context.get("actual_length")
    invalid = InvalidRequestError(message, field=field, limit=limit, got=got)
    if len(raised) > 1:
        invalid.problems, invalid.problems_count = problems, len(raised)
    return await answer(request, invalid)


def _problem(error: Any) -> dict[str, str]:
    """Return what is wrong, by place and kind: the input that pydantic keeps beside it is never sent."""
    path = shown_field(".".join(str(part) for part in error["loc"] if part != "body") or "body")
    message = "Input should be an object of named fields" if error["type"] in _NO_OBJECT else error["msg"]
    if error["type"] == "union_tag_invalid":  # pydantic's message has what was sent
        message = f"{error['ctx']['discriminator']} should be one of {error['ctx']['expected_tags']}"
    return {"field": path[:200], "message": message[:300]}
