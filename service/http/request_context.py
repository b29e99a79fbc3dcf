"""Around every request: its id, log line and count; a plain 500 where it crashed, a 503 where the server left it."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DrainingError, kind_of
from service.http.error_answers import error_response
from service.http.first_look import PROBED
from service.http.in_flight import SCORED
from service.security.access import line_of
from service.security.callers import caller_of
from service.telemetry.logs import log_crash, logger, request_id
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord, note
from service.telemetry.unfailing import unfailing

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestContext:
    """ASGI middleware: gives each request its id, counts and logs it, and turns a crash into a plain 500.

    An ``X-Request-ID`` of up to 128 letters, digits, dots, colons, dashes and underscores is kept; any
    other is replaced. The answer carries the id in the same header.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        token = request_id.set(_request_id(headers))
        record = RequestRecord()
        line = line_of(scope["method"], scope["path"]) if self._tracing is not None else None
        if self._tracing is not None and line is not None and line.method == "POST" and line.path in SCORED:
            with unfailing("tracing.begin"):
                record.trace = self._tracing.begin(f"POST {line.path}", headers)
                record.fields["trace_id"] = record.trace.trace_id
        scope.setdefault("state", {})["record"] = record
        begun = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id.get()
                if scope["app"].state.lifecycle.leaving:
                    # A client that keeps its connection would send the next request to a server that is about to leave.
                    headers["connection"] = "close"
            await send(message)

        self._metrics.count_in_flight(1)
        scope["app"].state.lifecycle.open_requests += 1
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log_crash("request crashed", error)
            self._metrics.count_reject(kind_of(Exception()).code)
            if status == 0:
                await error_response(error, scope=scope)(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # uvicorn, as the server leaves, cancels what still waits for its body.
            if status or not scope["app"].state.lifecycle.draining:
                raise
            leaving = DrainingError("the server is stopping, and the request had not come in time")
            self._metrics.count_reject(kind_of(leaving).code)
            note(Request(scope), code=kind_of(leaving).code)
            await error_response(leaving, scope=scope)(scope, receive, send_with_id)
        finally:
            self._metrics.count_in_flight(-1)
            scope["app"].state.lifecycle.open_requests -= 1
            self._finish(scope, status, time.monotonic() - begun)
            request_id.reset(token)

    def _finish(self, scope: Scope, status: int, duration_s: float) -> None:
        # Labels come from closed sets only: a client must not be able to grow the registry.
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        about: dict[str, Any] = {"method": method, "route": route, "status": status}
        self._metrics.count_request(route, method, status)
        quiet = route.startswith(PROBED)
        record: RequestRecord = scope["state"]["record"]
        if self._tracing is not None and record.trace is not None:
            with unfailing("tracing.end"):
                self._tracing.end(record, **about)
        event = {
            "event": "request",
            **about,
            "duration_ms": round(duration_s * 1000, 3),
            "caller": caller_of(Request(scope)).name,
            **{f"{name}_ms": round(value, 3) for name, value in record.stages_ms.items()},
            **record.fields,
        }
        logger.log(logging.DEBUG if quiet else logging.INFO, "%s %s %s", method, route, status, extra=event)


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if _SANE_ID.fullmatch(sent) else f"{random.getrandbits(128):032x}"  # it guards nothing
