"""Who may ask for what: one table, looked up before anything of a request's body is read.

A path or method that is not in the table needs the scope admin; a test finds the missing line.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from service.errors import ForbiddenError, UnauthorizedError
from service.security.callers import Scope
from service.security.keyring import Keyring

Answer = Callable[[Request, Exception], Awaitable[Response]]

#: The access that a request needs: nothing, any valid key, or a key with this scope.
Need = Literal["open", "key"] | Scope

#: Each endpoint's method and path, as its router writes it, and what it needs; the first that fits counts.
#: ``{rest:path}`` stands for any number of parts. HEAD is looked up as GET.
ACCESS: Final[dict[str, Need]] = {
    "GET /": "open",
    "GET /assets/{name}": "open",
    "GET /docs": "open",
    "GET /docs/assets/{rest:path}": "open",
    "GET /openapi.json": "open",
    "GET /health": "open",
    "GET /health/live": "open",
    "GET /health/ready": "open",
    "GET /v1/models": "key",
    "POST /v1/systemone": "predict",
    "GET /artifacts": "key",
    "GET /artifacts/{rest:path}": "key",
    "GET /shadow": "key",
    "DELETE /artifacts/{name}/shadow": "admin",
    "GET /changes": "key",
    "GET /changes/{change_id}": "key",
    "GET /metrics": "key",
    "POST /predict": "predict",
    "POST /feedback": "predict",
    "GET /feedback": "key",
    "POST /evaluate": "evaluate",
    "POST /suggest": "evaluate",
    "POST /evaluate/jobs": "evaluate",
    "GET /evaluate/jobs": "evaluate",
    "GET /evaluate/jobs/{rest:path}": "evaluate",
    "POST /evaluate/jobs/{rest:path}": "evaluate",
    "DELETE /evaluate/jobs/{rest:path}": "evaluate",
    "POST /artifacts/{name}/condition": "admin",
    "POST /artifacts/{name}/condition/undo": "admin",
    "POST /artifacts/{name}/shadow": "admin",
    "POST /artifacts/{rest:path}": "admin",
}


@dataclass(frozen=True)
class Line:
    """One line of the table; ``pattern`` is the router's, so that nothing is one path there and another here."""

    method: str
    path: str
    need: Need
    pattern: re.Pattern[str]


def _line(endpoint: str, need: Need) -> Line:
    method, path = endpoint.split(" ")
    return Line(method, path, need, compile_path(path)[0])


_LINES = [_line(endpoint, need) for endpoint, need in ACCESS.items()]
#: Those that fit one path alone: no other line before them fits it.
_EXACT = {(line.method, line.path): line for line in _LINES if "{" not in line.path}


def line_of(method: str, path: str) -> Line | None:
    """Return the table's line for a request, None where it has none."""
    looked_up = "GET" if method == "HEAD" else method
    fits = (line for line in _LINES if line.method == looked_up and line.pattern.match(path))
    return _EXACT.get((looked_up, path)) or next(fits, None)


class Access:
    """ASGI middleware: finds out who asks, for ``request.state.caller``, and refuses who may not, by ``answer``."""

    def __init__(self, app: ASGIApp, keyring: Keyring, answer: Answer) -> None:
        self._app = app
        self._keyring = keyring
        self._answer = answer

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            line = line_of(request.method, request.scope["path"])
            try:
                self._check(request, None if line is None else line.need)
            except (UnauthorizedError, ForbiddenError) as error:
                # No router has seen the request yet: this is the endpoint's name in the log and the metrics.
                scope["route"] = line
                response = await self._answer(request, error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, request: Request, need: Need | None) -> None:
        if need == "open":
            return
        request.state.caller = caller = self._keyring.caller(_bearer_token(request.headers))
        if need is None and "admin" not in caller.scopes:
            raise ForbiddenError("no endpoint is known by this method and path: /docs lists them")
        if need not in (None, "key") and need not in caller.scopes:
            raise ForbiddenError(f"this needs an API key with the scope {need!r}, which this one does not have")


def _bearer_token(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthorizedError("an API key is needed: send the header 'Authorization: Bearer TOKEN'")
    return token.strip()
