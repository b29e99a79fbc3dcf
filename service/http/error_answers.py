"""Whatever an endpoint raises becomes an answer by the table of ``service.errors``, counted, and noted for the log."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from laplora.errors import LaploraError
from service.errors import InvalidRequestError, MethodNotAllowedError, RouteNotFoundError, kind_of, shown_field
from service.http.request_context import error_response
from service.telemetry.logs import log_crash
from service.telemetry.request_record import note

#: What pydantic says of a value that is no JSON object, in words about its own classes.
_NO_OBJECT = frozenset({"dict_type", "model_type", "model_attributes_type"})


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
    # The first problem only, by place and kind: the input that pydantic keeps beside it is never sent.
    first = error.errors()[0]
    path = shown_field(".".join(str(part) for part in first["loc"] if part != "body") or "body")
    context = first.get("ctx", {})
    bounds = (value for name, value in context.items() if name.startswith(("max_", "min_")))
    limit = next((value for value in bounds if isinstance(value, int)), None)
    problem = "Input should be an object of named fields" if first["type"] in _NO_OBJECT else first["msg"]
    message = f"{path[:200]}: {problem}"
    invalid = InvalidRequestError(message, field=path, limit=limit, got=context.get("actual_length"))
    return await answer(request, invalid)
