"""Request ids, structured logs and Prometheus metrics. None of them ever holds prompt text."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.engine import BatchReport
from service.errors import error_content, kind_of, retry_after_s

logger = logging.getLogger("laplora.service")

#: Id of the request being served, "" outside of one.
request_id: ContextVar[str] = ContextVar("laplora_request_id", default="")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName"}
_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The service's Prometheus metrics, in a registry of their own so that two applications never collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "laplora_requests", "Answered HTTP requests.", ["route", "method", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "laplora_latency_seconds",
            "Seconds of each stage of a scored request.",
            ["route", "stage"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.rejects = Counter(
            "laplora_rejects", "Requests refused or failed, by error code.", ["reason"], registry=self.registry
        )
        self.answers = Counter(
            "laplora_answers",
            "Answered inputs of POST /predict, by the predictive asked for and the one that answered.",
            ["predictive", "answered_by"],
            registry=self.registry,
        )
        self.in_flight = Gauge("laplora_requests_in_flight", "HTTP requests being answered.", registry=self.registry)
        self.queue_rows = Gauge("laplora_queue_rows", "Inputs that wait for the device.", registry=self.registry)
        self.queue_tokens = Gauge("laplora_queue_tokens", "Tokens that wait for the device.", registry=self.registry)
        self.ready = Gauge("laplora_ready", "1 when an artifact answers.", registry=self.registry)
        self.artifact = Gauge(
            "laplora_artifact_info", "1 for the artifact that answers.", ["name", "digest"], registry=self.registry
        )
        self.batches = Counter("laplora_batches", "Device runs.", ["predictive", "outcome"], registry=self.registry)
        self.batch_rows = Histogram(
            "laplora_batch_rows",
            "Rows of each device run.",
            ["predictive"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        self.batch_padding = Histogram(
            "laplora_batch_padding_ratio",
            "Share of each device run's tokens that was padding.",
            ["predictive"],
            buckets=(0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "laplora_batch_seconds",
            "Seconds of each device run.",
            ["predictive"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )

    def watch_queue(self, rows: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Read the queue's gauges from these functions at scrape time."""
        self.queue_rows.set_function(rows)
        self.queue_tokens.set_function(tokens)

    def count_batch(self, report: BatchReport) -> None:
        """Count one run of the device."""
        self.batches.labels(report.predictive, report.outcome).inc()
        self.batch_rows.labels(report.predictive).observe(report.rows)
        self.batch_padding.labels(report.predictive).observe(1 - report.tokens / max(report.padded_tokens, 1))
        self.batch_seconds.labels(report.predictive).observe(report.duration_s)

    def count_stages(self, route: str, stages_ms: dict[str, float]) -> None:
        """Count one scored request's stages, given in milliseconds."""
        for stage, duration_ms in stages_ms.items():
            self.latency.labels(route, stage).observe(duration_ms / 1000)

    def count_answers(self, predictive: str, answered_by: Sequence[str]) -> None:
        """Count one request's answers by the predictive asked for and the one that made each."""
        for name in answered_by:
            self.answers.labels(predictive, name).inc()

    def set_active(self, name: str, digest: str) -> None:
        """Name the artifact that answers."""
        self.artifact.clear()
        self.artifact.labels(name, digest).set(1)
        self.ready.set(1)


class RequestContext:
    """ASGI middleware: gives each request its id, counts and logs it, and turns a crash into a plain 500.

    An ``X-Request-ID`` of up to 128 letters, digits, dots, colons, dashes and underscores is kept; any
    other is replaced. The answer carries the id in the same header.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = request_id.set(_request_id(Headers(scope=scope)))
        begun = time.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id.get()
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log_crash("request crashed", error)
            self._metrics.rejects.labels(kind_of(Exception()).code).inc()
            if status == 0:
                await error_response(error)(scope, receive, send_with_id)
        finally:
            self._metrics.in_flight.dec()
            self._finish(scope, status, time.monotonic() - begun)
            request_id.reset(token)

    def _finish(self, scope: Scope, status: int, duration_s: float) -> None:
        # Labels come from closed sets only: a client must not be able to grow the registry.
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.requests.labels(route, method, str(status)).inc()
        quiet = route.startswith(("/health", "/v2/health", "/metrics"))
        logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %s",
            method,
            route,
            status,
            extra={
                "event": "request",
                "method": method,
                "route": route,
                "status": status,
                "duration_ms": round(duration_s * 1000, 3),
                **scope.get("state", {}).get("log_fields", {}),
            },
        )


def error_response(error: BaseException) -> JSONResponse:
    """Return the answer for an exception, as the error table says."""
    headers = {}
    retry = retry_after_s(error)
    if retry is not None:
        headers["Retry-After"] = str(retry)
    return JSONResponse(error_content(error, request_id.get()), kind_of(error).status, headers)


def log_crash(what: str, error: BaseException) -> None:
    """Log an unexpected exception by its type and frames: its message may hold a client's text."""
    frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    logger.error(what, extra={"event": "crash", "error": type(error).__name__, "frames": frames})


def _request_id(headers: Headers) -> str:
    asked = headers.get("x-request-id", "")
    return asked if _SANE_ID.fullmatch(asked) else uuid.uuid4().hex


class JsonFormatter(logging.Formatter):
    """One JSON object per event: time, level, logger, message, request_id, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(
            {
                "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
                **_fields(record),
            },
            default=str,
        )


class TextFormatter(logging.Formatter):
    """One line of text per event, for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of text."""
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        return f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {record.getMessage()}  {fields}".rstrip()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"request_id": request_id.get()} if request_id.get() else {}
    fields.update({name: value for name, value in record.__dict__.items() if name not in _STANDARD})
    if record.exc_info and record.exc_info[0] is not None:
        fields["error"] = record.exc_info[0].__name__
        fields["frames"] = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(record.exc_info[2])]
    return fields


def configure_logging(level: str, log_format: str) -> None:
    """Send the service's, the library's and uvicorn's logs to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("laplora").setLevel(level.upper())
    # uvicorn's own lines repeat ours, except when something is wrong.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
