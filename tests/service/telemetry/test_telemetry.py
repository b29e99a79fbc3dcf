"""Request ids, logs and metrics, and that answers, loads and the device go on with metrics that fail."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from limits import longer_and_longer
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from serving import FakePredictor, Served, artifacts_in, changed, serve

import service
from laplora.decisions.thresholds import FLAGS
from service.errors import ERROR_KINDS
from service.telemetry.answer_metrics import AnswerMetrics
from service.telemetry.event_loop import INTERVAL_S, watched
from service.telemetry.logs import EVENTS, JsonFormatter, TextFormatter
from service.telemetry.metrics import Metrics, Phase

pytestmark = pytest.mark.anyio

SECRET = "zebra-secret"


class Log(io.StringIO):
    """What the server logs."""

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in map(json.loads, self.getvalue().splitlines()) if event.get("event") == name]


@pytest.fixture
def log() -> Iterator[Log]:
    stream = Log()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("laplora.service")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_log_lines_are_json_with_id_and_stages_and_no_text(log: Log) -> None:
    async def fail_unseen() -> None:
        raise ValueError(SECRET)

    predictor = FakePredictor()
    predictor.poison[666] = KeyError(SECRET)
    async with serve(predictor) as served:
        await served.client.post("/predict", json={"inputs": [{"text": SECRET}]}, headers={"x-request-id": "good-one"})
        await served.predict(f"{SECRET} 666")
        await served.client.post("/predict", json={"inputs": [{"txt": SECRET}]})
        await served.client.get(f"/{SECRET}?{SECRET}")
        task = asyncio.create_task(fail_unseen())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert task.done()
        del task
        gc.collect()
    assert SECRET not in log.getvalue()
    assert [event["phase"] for event in log.events("stage")] == ["loading", "verifying", "warming_up", "ready"]
    first, crashed, *others = log.events("request")
    assert first.items() >= {"request_id": "good-one", "route": "/predict", "status": 200, "rows": 1}.items()
    assert {"queue_ms", "tokenize_ms", "compute_ms", "total_ms", "duration_ms", "tokens"} <= set(first)
    assert [(event["status"], event["code"]) for event in others] == [(422, "invalid_input"), (404, "route_not_found")]
    crash, unseen = log.events("crash")
    assert (crash["error"], crashed["status"], unseen["error"]) == ("KeyError", 500, "ValueError")
    assert crash["frames"]


class Scrape:
    """What GET /metrics said: ``scrape(name, label=value)`` is one sample."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, frozenset(labels.items())]


async def scrape_of(served: Served) -> Scrape:
    return Scrape((await served.client.get("/metrics")).text)


async def test_metrics_count_requests_and_say_what_the_answers_look_like() -> None:
    predictor = FakePredictor(max_tokens=16)
    predictor.unfamiliar = {1}  # a token of every prompt
    async with serve(predictor) as served:
        await served.predict("70000 a", "20000")
        await served.predict(" ".join(["b"] * 40), options={"truncate": True, "predictive": "map"})
        await served.client.post("/predict", content=b"{")
        await served.client.get("/x1")
        await served.client.request("BREW", "/x2")
        response = await served.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert {
        'laplora_requests_total{method="POST",route="/predict",status="200"} 2.0',
        'laplora_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'laplora_requests_total{method="OTHER",route="unmatched",status="404"} 1.0',
        'laplora_rejects_total{reason="unsupported_media_type"} 1.0',
        'laplora_rejects_total{reason="route_not_found"} 2.0',
        'laplora_latency_seconds_count{route="/predict",stage="total"} 2.0',
        'laplora_batches_total{outcome="ok",predictive="map"} 1.0',
        'laplora_batch_rows_sum{predictive="laplace"} 2.0',
        'laplora_artifact_info{active="true",digest="sha256:fake",name="fake"} 1.0',
    } <= set(response.text.splitlines())
    scrape = Scrape(response.text)
    laplace, map_ = ({"artifact": "fake", "predictive": name} for name in ("laplace", "map"))
    assert scrape("laplora_epistemic_uncertainty_nats_sum", **laplace) == pytest.approx(0.2)
    assert scrape("laplora_confidence_ratio_sum", **laplace) == pytest.approx(0.7 + 0.8)
    assert scrape("laplora_label_mass_ratio_sum", **laplace) == pytest.approx(1.8)
    assert scrape("laplora_prediction_set_labels_sum", **laplace) == 2
    assert scrape("laplora_truncated_rows_total", **laplace) == 0
    # map has nothing epistemic.
    assert scrape("laplora_epistemic_uncertainty_nats_count", **map_) == 0
    assert scrape("laplora_confidence_ratio_count", **map_) == 1
    assert scrape("laplora_truncated_rows_total", **map_) == 1
    assert scrape("laplora_answered_tokens_total", **map_) == 16
    for rows, by in ((2, laplace), (1, map_)):
        flags = {flag: scrape("laplora_flags_total", flag=flag, **by) for flag in FLAGS}
        assert flags == {flag: rows if flag == "unfamiliar" else 0 for flag in FLAGS}
        decisions = [scrape("laplora_decisions_total", decision=name, **by) for name in ("accept", "review")]
        assert decisions == [rows, 0]


async def test_what_clients_name_never_becomes_a_label(served: Served) -> None:
    await served.predict("a", artifact=SECRET)
    await served.predict("a", options={"predictive": SECRET})
    await served.client.request(SECRET.upper(), f"/{SECRET}", headers={"x-request-id": SECRET})
    text = (await served.client.get("/metrics")).text
    assert SECRET not in text.lower()


async def test_metrics_say_how_the_server_is() -> None:
    async with serve(max_queue_rows=300, max_queue_tokens=1000, client_share=1.0) as served:
        idle = await scrape_of(served)
        async with served.occupied():
            waiting = asyncio.create_task(served.predict("a"))
            await served.until(lambda: served.state.backend.queue.rows == 1)
            busy = await scrape_of(served)
        await waiting
        after = await scrape_of(served)
        served.state.lifecycle.drain()
        draining = await scrape_of(served)
    age = "laplora_queue_oldest_age_seconds"
    assert idle(age) == after(age) == 0 < busy(age)
    assert (idle("laplora_queue_max_rows"), idle("laplora_queue_max_tokens")) == (300, 1000)
    assert (busy("laplora_queue_rows"), after("laplora_queue_rows"), after("laplora_queue_tokens")) == (1, 0, 0)
    assert idle("laplora_device_busy_seconds_total") < after("laplora_device_busy_seconds_total")
    assert after("laplora_batches_total", outcome="ok", predictive="laplace") == 2
    assert after("laplora_batches_total", outcome="out_of_memory", predictive="laplace") == 0
    assert [(now("laplora_ready"), now("laplora_draining")) for now in (after, draining)] == [(1, 0), (0, 1)]
    for phase in get_args(Phase):
        assert idle("laplora_startup_phase", phase=phase) == (phase == "ready")
    (build,) = (dict(labels) for name, labels in idle.samples if name == "laplora_build_info")
    assert torch.__version__.startswith(build["torch"])
    assert [idle("laplora_rejects_total", reason=kind.code) for kind in ERROR_KINDS] == [0] * len(ERROR_KINDS)
    assert idle("process_resident_memory_bytes") > 0


async def test_a_blocked_event_loop_shows_in_one_piece() -> None:
    blocked_s = 3 * INTERVAL_S
    lags: list[float] = []
    async with watched(lags.append):
        while not lags:
            await asyncio.sleep(0)
        time.sleep(blocked_s)
        before = len(lags)
        while len(lags) == before:
            await asyncio.sleep(0)
    assert max(lags[before:]) >= blocked_s - INTERVAL_S


async def test_a_requests_line_says_who_asked_for_what(log: Log) -> None:
    async with serve() as served:
        await served.predict("a", options={"predictive": "map"})
        # The one that is given up has the stages that it came to.
        for timeout_s in longer_and_longer():
            served.predictor.hold()
            await served.predict("a", options={"timeout_s": timeout_s})
            served.predictor.released.set()
            if "compute_ms" in log.events("request")[-1]:
                break
    answered, *_, late = log.events("request")
    for line, predictive in ((answered, "map"), (late, "laplace")):
        named = {"artifact": "fake", "digest": "sha256:fake", "predictive": predictive, "caller": "127.0.0.1"}
        assert named.items() <= line.items()
        assert {"tokenize_ms", "queue_ms"} <= set(line)
    assert (answered.get("code"), late["code"]) == (None, "deadline_exceeded")


def test_the_list_of_events_is_closed() -> None:
    """Every event in the code is in EVENTS (service/telemetry/logs.py), and the other way round."""
    sources = [path.read_text(encoding="utf-8") for path in Path(service.__file__).parent.rglob("*.py")]
    logged = [name for text in sources for name in re.findall(r'"event": "(\w+)"', text)]
    assert set(logged) == set(EVENTS)


def test_lines_hold_the_events_fields_and_no_exceptions_message() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError:
        record = logging.LogRecord("laplora.service", logging.INFO, "f.py", 1, "hello\n%s", ("you",), sys.exc_info())
    record.__dict__.update(event="greeting", rows=3)
    event = json.loads(JsonFormatter().format(record))
    assert (event["message"], event["level"], event["event"], event["rows"]) == ("hello\nyou", "info", "greeting", 3)
    assert event["error"] == "ValueError"
    assert datetime.fromisoformat(event["time"]).utcoffset() == timedelta(0)
    line = TextFormatter().format(record)
    assert "INFO    hello you  event=greeting rows=3 error=ValueError" in line
    assert SECRET not in json.dumps(event) + line
    assert "\n" not in line
    record.msg, record.args = "\x1b]0;%s\x07\u202e", ("you",)
    assert r"\u001b]0;you\u0007\u202e" in TextFormatter().format(record)


class Broken:
    """A metric that fails whatever it is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("SECRET")


async def test_requests_and_loads_go_on_with_every_metric_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.telemetry.unfailing._failed", set())  # nothing failed yet
    first, second = artifacts_in(tmp_path, "first", "second")
    async with serve(first, second, artifact="first", artifacts_root=tmp_path) as served:
        metrics: Metrics = served.state.metrics
        for name in [n for n, value in vars(metrics).items() if hasattr(value, "collect") or n == "_answered"]:
            if name != "registry":
                setattr(metrics, name, Broken())
        assert (await served.client.post("/predict", content=b"{")).status_code == 415
        kept = (await served.predict("a")).json()["predictions"][0]["prediction_id"]
        label = {"prediction_id": kept, "label": "positive"}
        assert (await served.client.post("/feedback", json={"items": [label]})).status_code == 200
        assert (await changed(served.client, "second/activate")).status_code == 200
        assert served.state.backend.device.health.fault is None
        served.state.lifecycle.drain()
        assert served.state.lifecycle.draining
    found = [r.watcher for r in caplog.records if getattr(r, "event", "") == "watcher_failed"]  # type: ignore[attr-defined]
    assert "SECRET" not in caplog.text
    assert len(found) == len(set(found))
    expected = {"count_request", "count_reject", "count_answers", "count_stages", "set_artifacts"}
    assert {f"metrics.{name}" for name in expected} <= set(found)
    assert any("count_batch" in name for name in found)


async def test_a_report_that_fails_leaves_the_other_metrics_readable(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setattr(served.state.feedback, "reports", Broken().__getattr__)
    response = await served.client.get("/metrics")
    assert (response.status_code, "laplora_ready 1.0" in response.text) == (200, True)


def test_artifacts_come_and_go_while_answers_are_counted() -> None:
    """A series begins in the middle of the look through them, which without a lock changes what is looked through."""
    metrics = AnswerMetrics(CollectorRegistry())
    predictor = FakePredictor()
    answers: list[Any] = predictor.predict([predictor.row(5)])
    threads: list[threading.Thread] = []

    class Kept(set[str]):
        def __contains__(self, name: object) -> bool:
            threads.append(threading.Thread(target=metrics.count, args=(f"new {len(threads)}", answers)))
            threads[-1].start()
            threads[-1].join(0.2)  # with the lock it ends after the look only
            return True

    metrics.count("first", answers)
    metrics.count("second", answers)
    metrics.keep(Kept())
    for thread in threads:
        thread.join()
    assert len(threads) == 2
