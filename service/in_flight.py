"""How many requests are answered at once: past that, a POST is refused before its body takes any memory."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import Answer, line_of
from service.errors import TooManyRequestsError


class InFlight:
    """ASGI middleware: refuses the POST that would be one too many. Health, metrics and other GETs always pass.

    Args:
        most: how many POSTs are answered at once.
        answer: makes the response for an error.
    """

    def __init__(self, app: ASGIApp, most: int, answer: Answer) -> None:
        self._app = app
        self._most = most
        self._answer = answer
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._count >= self._most:
            error = TooManyRequestsError(
                f"{self._count} requests are being answered, max_requests is {self._most}: try again later",
                limit=self._most,
                got=self._count + 1,
            )
            scope["route"] = line_of(scope["method"], scope["path"])
            response = await self._answer(Request(scope), error)
            await response(scope, receive, send)
            return
        self._count += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._count -= 1
