"""Request ids, logs and metrics."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from serving import FakePredictor, serve

from service.logs import JsonFormatter, TextFormatter, configure_logging

SECRET = "zebra-secret"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("laplora.service")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.anyio
async def test_sane_request_ids_are_kept_and_others_replaced() -> None:
    async with serve() as served:
        for asked, kept in [
            ("abc-123_X.y:z", True),
            ("x" * 128, True),
            ("x" * 129, False),
            ("", False),
            ("a b", False),
            ('"};drop', False),
        ]:
            response = await served.client.get("/health/live", headers={"x-request-id": asked})
            got = response.headers["x-request-id"]
            assert (got == asked) is kept
            assert got
        error = await served.client.get("/nope", headers={"x-request-id": "mine"})
        assert error.json()["request_id"] == "mine"


@pytest.mark.anyio
async def test_log_lines_are_json_with_id_and_stages_and_no_text(log: io.StringIO) -> None:
    predictor = FakePredictor()
    predictor.poison[666] = KeyError(SECRET)
    async with serve(predictor) as served:
        await served.client.post("/predict", json={"inputs": [{"text": SECRET}]}, headers={"x-request-id": "good-one"})
        await served.predict(f"{SECRET} 666")
        await served.client.post("/predict", json={"inputs": [{"txt": SECRET}]})
        await served.client.get(f"/{SECRET}?{SECRET}")
    assert SECRET not in log.getvalue()
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    requests = [event for event in events if event.get("event") == "request"]
    assert [event["status"] for event in requests] == [200, 500, 422, 404]
    first = requests[0]
    assert first["request_id"] == "good-one"
    assert first["route"] == "/predict"
    assert first["rows"] == 1
    assert {"queue_ms", "tokenize_ms", "compute_ms", "total_ms", "duration_ms", "tokens"} <= set(first)
    assert requests[2]["code"] == "invalid_input"
    crash = next(event for event in events if event.get("event") == "crash")
    assert crash["error"] == "KeyError"
    assert crash["frames"]


@pytest.mark.anyio
async def test_metrics_count_what_happened() -> None:
    async with serve() as served:
        await served.predict("a", "b c")
        await served.predict("a", options={"mode": "map"})
        await served.client.post("/predict", content=b"{")
        await served.client.get("/x1")
        await served.client.request("BREW", "/x2")
        served.predictor.hold()
        running = asyncio.create_task(served.predict("a"))
        await asyncio.to_thread(served.predictor.entered.wait)
        waiting = asyncio.create_task(served.predict("a"))
        await served.until(lambda: served.state.engine.queued_rows == 1)
        response = await served.client.get("/metrics")
        served.predictor.released.set()
        await asyncio.gather(running, waiting)
    assert response.headers["content-type"].startswith("text/plain")
    lines = set(response.text.splitlines())
    for expected in (
        'laplora_requests_total{method="POST",route="/predict",status="200"} 2.0',
        'laplora_requests_total{method="POST",route="/predict",status="415"} 1.0',
        'laplora_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'laplora_requests_total{method="OTHER",route="unmatched",status="404"} 1.0',
        'laplora_rejects_total{reason="unsupported_media_type"} 1.0',
        'laplora_rejects_total{reason="route_not_found"} 2.0',
        'laplora_latency_seconds_count{route="/predict",stage="compute"} 2.0',
        'laplora_latency_seconds_count{route="/predict",stage="total"} 2.0',
        'laplora_batches_total{outcome="ok",predictive="map"} 1.0',
        'laplora_batch_rows_sum{predictive="laplace"} 2.0',
        'laplora_artifact_info{digest="sha256:fake",name="fake"} 1.0',
        "laplora_queue_rows 1.0",
        "laplora_ready 1.0",
    ):
        assert expected in lines
    assert any(line.startswith("laplora_queue_tokens") for line in lines)
    assert any(line.startswith("laplora_batch_padding_ratio_sum") for line in lines)


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("laplora.service", logging.INFO, "f.py", 1, "hello %s", ("you",), None)
    made.__dict__.update(extra)
    return made


def test_json_lines_hold_the_events_fields() -> None:
    event = json.loads(JsonFormatter().format(record(event="greeting", rows=3)))
    assert (event["message"], event["level"], event["event"], event["rows"]) == ("hello you", "info", "greeting", 3)
    assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)


def test_text_lines_are_one_line() -> None:
    line = TextFormatter().format(record(event="greeting", rows=3))
    assert "hello you" in line
    assert line.endswith("event=greeting rows=3")


def test_tracebacks_hold_no_message() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        made = record()
        made.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter().format(made)
    assert SECRET not in text
    assert "ValueError" in text


def test_logging_is_configured_only_when_asked() -> None:
    root = logging.getLogger()
    kept = (root.handlers[:], root.level, logging.getLogger("laplora").level, logging.getLogger("uvicorn").level)
    threads = threading.excepthook
    try:
        configure_logging("warning", "json")
        assert isinstance(root.handlers[0].formatter, JsonFormatter)
        assert logging.getLogger("laplora").level == logging.WARNING
    finally:
        logging.captureWarnings(False)
        threading.excepthook = threads
        root.handlers[:] = kept[0]
        root.setLevel(kept[1])
        logging.getLogger("laplora").setLevel(kept[2])
        logging.getLogger("uvicorn").setLevel(kept[3])
