"""Traces: what a collector gets from a real server process, and that a broken one costs no request anything."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from server_process import ROOT, Process, fake_artifacts, fake_server, in_flight, metric, until

SECRET = "zebra-secret"
PARENT_TRACE, PARENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP/HTTP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.exports: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()

    @property
    def spans(self) -> list[Span]:
        scopes = [scope for e in self.exports for resource in e.resource_spans for scope in resource.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def of(self, request_id: str) -> Span:
        (span,) = [s for s in self.spans if attributes(s).get("laplora.request_id") == request_id]
        return span


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.paths.add(self.path)
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.exports.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield collector, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    # The collector is on this machine, whatever proxy is set.
    return partial(fake_server, fake_artifacts(tmp_path), NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")


def predict(client: httpx.Client, text: str = "a", request_id: str = "", **headers: str) -> httpx.Response:
    return client.post("/predict", json={"inputs": [{"text": text}]}, headers={"x-request-id": request_id, **headers})


def stop(process: Process) -> None:
    process.popen.terminate()
    assert process.left() == 0


def test_a_scored_request_is_a_trace_with_its_stages(start: Callable[..., Any]) -> None:
    before_ns = time.time_ns()
    # FastAPI's own telemetry stays off, whatever the environment says: it sends exceptions' messages.
    fastapi = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true"}
    with (
        collecting() as (collector, url),
        start("--otlp-endpoint", url, OTEL_EXPORTER_OTLP_ENDPOINT=url, **fastapi) as process,
        process.client() as client,
    ):
        parent = f"00-{PARENT_TRACE}-{PARENT_SPAN}-01"
        assert predict(client, SECRET, "good", traceparent=parent).status_code == 200
        client.post("/predict", json={"inputs": [{"txt": SECRET}]}, headers={"x-request-id": "bad"})
        client.post("/predict", content=SECRET, headers={"x-request-id": "no-json", "content-type": "application/json"})
        predict(client, SECRET, "unsampled", traceparent=parent[:-1] + "0")
        predict(client, SECRET, "odd-parent", traceparent=SECRET)
        client.get("/artifacts", headers={"x-request-id": "not-scored"})
        logged = [json.loads(line) for line in process.lines if '"request_id": "good"' in line]
        # Nothing waits for the exporter's next turn: what is left is sent while the server leaves.
        stop(process)
    after_ns = time.time_ns()
    assert collector.paths == {"/v1/traces"}
    (resource,) = {str(r.resource) for e in collector.exports for r in e.resource_spans}
    assert 'string_value: "laplora"' in resource
    ids = {attributes(s).get("laplora.request_id") for s in collector.spans if s.kind == Span.SPAN_KIND_SERVER}
    assert ids == {"good", "bad", "no-json", "odd-parent"}

    span = collector.of("good")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT_TRACE, PARENT_SPAN)
    assert span.name == "POST /predict"
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "laplora.request_id": "good",
        "laplora.artifact.name": "fake",
        "laplora.artifact.digest": "sha256:fake",
        "laplora.predictive": "laplace",
        "laplora.rows": 1,
        "laplora.tokens": attributes(span)["laplora.tokens"],
    }
    assert attributes(span)["laplora.tokens"] > 0
    assert span.status.code != Status.STATUS_CODE_ERROR
    stages = [s for s in collector.spans if s.parent_span_id == span.span_id]
    assert [s.name for s in stages] == ["tokenize", "queue", "compute"]
    times = [t for s in stages for t in (s.start_time_unix_nano, s.end_time_unix_nano)]
    assert times == sorted(times), "one stage after the other"
    assert before_ns < span.start_time_unix_nano <= times[0] <= times[-1] <= span.end_time_unix_nano < after_ns
    assert {s.trace_id for s in stages} == {span.trace_id}
    assert [line["trace_id"] for line in logged if line.get("event") == "request"] == [PARENT_TRACE]

    for name, code in (("bad", "invalid_input"), ("no-json", "invalid_json")):
        refused = collector.of(name)
        found = attributes(refused)
        assert (found["error.type"], found["http.response.status_code"]) == (code, 422)
        assert refused.status.code != Status.STATUS_CODE_ERROR, "the client's fault"
    assert collector.of("odd-parent").parent_span_id == b""
    assert SECRET not in "".join(map(str, collector.exports))


def test_a_batch_is_linked_to_the_requests_whose_rows_it_ran(start: Callable[..., Any], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with (
        collecting() as (collector, url),
        start("--otlp-endpoint", url, FAKE_GATE=str(gate)) as process,
        process.client() as client,
        ThreadPoolExecutor() as pool,
    ):
        gate.unlink()
        answers = [pool.submit(predict, client, "a", "first")]
        in_flight(client, 1)
        until(lambda: metric(client, "laplora_queue_rows") == 0)
        answers += [pool.submit(predict, client, "b", name) for name in ("second", "third")]
        until(lambda: metric(client, "laplora_queue_rows") == 2)
        gate.touch()
        assert [answer.result().status_code for answer in answers] == [200] * 3
        stop(process)
    batches = [span for span in collector.spans if span.name == "batch"]
    linked = [{link.span_id for link in batch.links} for batch in batches]
    spans = {name: collector.of(name).span_id for name in ("first", "second", "third")}
    assert linked == [{spans["first"]}, {spans["second"], spans["third"]}]
    assert [attributes(batch)["laplora.rows"] for batch in batches] == [1, 2]
    assert {attributes(batch)["laplora.outcome"] for batch in batches} == {"ok"}


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses connections", "never answers"])
def test_a_dead_collector_harms_no_request_and_no_exit(start: Callable[..., Any], hangs: bool) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if hangs:
            dead.listen()
        url = f"http://127.0.0.1:{dead.getsockname()[1]}"
        # The exporter would wait for an hour: what bounds the exit is the server.
        small = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
        patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": "3600", "OTEL_BSP_SCHEDULE_DELAY": "10", **small}
        with start("--otlp-endpoint", url, **patient) as process, process.client() as client:
            # More spans than the queue holds: the rest is dropped.
            assert {predict(client).status_code for _ in range(20)} == {200}
            stop(process)
    assert "Traceback" not in process.log
    assert all(json.loads(line) for line in process.lines)


def test_without_the_extra_a_start_that_needs_it_says_what_to_install(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    # FastAPI brings OpenTelemetry's interface; what the extra adds is what makes and exports spans.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['opentelemetry.sdk'] = None\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests" / "service")))
    with start("--otlp-endpoint", "http://127.0.0.1:4318", PYTHONPATH=path) as process:
        assert process.left() == 2
    (event,) = [json.loads(line) for line in process.lines if "bad_settings" in line]
    assert "pip install 'laplora[telemetry]'" in event["message"]
    with start(PYTHONPATH=path) as process, process.client() as client:
        assert predict(client).status_code == 200
