"""Traces for an OpenTelemetry collector: a span a scored request, one for each of its stages, one for each batch.

Imported only where an endpoint is set. Spans are made when their times are known, queued, and exported by a thread of
the SDK: a collector that is slow or dead costs spans, never a request. The SDK's own variables apply (``OTEL_*``), such
as ``OTEL_EXPORTER_OTLP_HEADERS`` for a collector that wants a key. Never prompt text.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.telemetry.batch_report import BatchReport
from service.telemetry.logs import request_id
from service.telemetry.request_record import RequestRecord

#: The names of a request's log fields in its span.
_ATTRIBUTES = {
    "artifact": "laplora.artifact.name",
    "digest": "laplora.artifact.digest",
    "predictive": "laplora.predictive",
    "rows": "laplora.rows",
    "tokens": "laplora.tokens",
    "code": "error.type",
}


@dataclass(frozen=True)
class RequestSpan:
    """The span of one request.

    Attributes:
        offset_ns: what turns ``time.monotonic_ns`` into nanoseconds since the epoch: the clock that stages are timed by
            never jumps, spans need the other one.
    """

    span: Span
    offset_ns: int

    @property
    def context(self) -> SpanContext:
        """The span that batches link to."""
        return self.span.get_span_context()

    @property
    def trace_id(self) -> str:
        return f"{self.context.trace_id:032x}"

    def at(self, monotonic_s: float) -> int:
        """Return a time of ``time.monotonic`` in nanoseconds since the epoch."""
        return int(monotonic_s * 1e9) + self.offset_ns


class Tracing:
    """Makes the spans and hands them to the exporter.

    Args:
        endpoint: base URL of the collector's OTLP over HTTP; spans go to its ``/v1/traces``.
    """

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create(
            {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "laplora"), SERVICE_VERSION: version("laplora")}
        )
        # Without its own hook at exit, which could wait for half a minute: close() bounds the wait.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("laplora.service")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, name: str, headers: Mapping[str, str]) -> RequestSpan:
        """Return the span of a request that came just now, in the trace that its ``traceparent`` names."""
        now_ns = time.time_ns()
        parent = self._propagator.extract({name: headers[name] for name in self._propagator.fields if name in headers})
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, start_time=now_ns)
        return RequestSpan(span, now_ns - time.monotonic_ns())

    def end(self, record: RequestRecord, *, method: str, route: str, status: int) -> None:
        """End a traced request's span, with a child for each of its stages; ``status`` is 0 where there was none."""
        request: RequestSpan = record.trace
        span = request.span
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                    "laplora.request_id": request_id.get(),
                }
            )
            for name, attribute in _ATTRIBUTES.items():
                if isinstance(value := record.fields.get(name), str | int):
                    span.set_attribute(attribute, value)
            if status >= 500 or status == 0:
                span.set_status(Status(StatusCode.ERROR))
            inside = set_span_in_context(span)
            for stage in record.stages:
                child = self._tracer.start_span(stage.name, inside, start_time=request.at(stage.begun))
                child.end(request.at(stage.ended))
        span.end(request.at(time.monotonic()))

    def batch(self, report: BatchReport) -> None:
        """Make the span of one run of the device, linked to the traced requests whose rows it ran, if there are any."""
        requests = [trace for trace in report.traces if isinstance(trace, RequestSpan)]
        traced = [request for request in requests if request.context.trace_flags.sampled]
        if not traced:
            return
        span = self._tracer.start_span(
            "batch",
            Context(),
            attributes={
                "laplora.rows": report.rows,
                "laplora.tokens": report.tokens,
                "laplora.padded_tokens": report.padded_tokens,
                "laplora.predictive": report.predictive,
                "laplora.outcome": report.outcome,
            },
            links=[Link(request.context) for request in traced],
            start_time=traced[0].at(report.begun),
        )
        span.end(traced[0].at(report.begun + report.duration_s))

    def close(self) -> threading.Thread:
        """Return a running thread that exports what is left and ends; join it for as long as there is time."""
        closing = threading.Thread(target=self._provider.shutdown, name="laplora-traces", daemon=True)
        closing.start()
        return closing
