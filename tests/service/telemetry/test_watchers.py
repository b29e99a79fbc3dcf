"""Metrics and traces that fail, or are read while they change: answers, loads and the device go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from serving import FakePredictor, Served, artifacts_in, serve

from laplora.answers.prediction import Prediction
from service.telemetry import unfailing as module
from service.telemetry.answer_metrics import AnswerMetrics
from service.telemetry.metrics import Metrics, Phase
from service.telemetry.unfailing import unfailing

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def nothing_failed_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_failed", set())


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.watcher for r in caplog.records if getattr(r, "event", "") == "watcher_failed"]  # type: ignore[attr-defined]


def test_each_failure_is_logged_once_and_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "a"):
        with unfailing(name):
            raise ValueError("SECRET")
    assert events(caplog) == ["a", "b"]
    assert "SECRET" not in caplog.text
    with pytest.raises(KeyboardInterrupt), unfailing("a"):
        raise KeyboardInterrupt


class Broken:
    """A metric that fails whatever it is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("SECRET")


async def test_requests_and_loads_go_on_with_every_metric_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = artifacts_in(tmp_path, "first", "second")
    async with serve(first, second, artifact="first", artifacts_root=tmp_path) as served:
        metrics: Metrics = served.state.metrics
        for name in [n for n, value in vars(metrics).items() if hasattr(value, "collect") or n == "_answered"]:
            if name != "registry":
                setattr(metrics, name, Broken())
        assert (await served.predict("a")).status_code == 200
        assert (await served.client.post("/predict", content=b"{")).status_code == 415
        kept = (await served.predict("a")).json()["predictions"][0]["prediction_id"]
        label = {"prediction_id": kept, "label": "positive"}
        assert (await served.client.post("/feedback", json={"items": [label]})).status_code == 200
        assert (await served.client.post("/artifacts/second/activate")).status_code == 200
        assert served.state.device.health.fault is None
        served.state.lifecycle.drain()
        assert served.state.lifecycle.draining
    found = events(caplog)
    assert len(found) == len(set(found))
    expected = {"count_batch", "count_request", "count_reject", "count_answers", "count_stages", "set_artifacts"}
    assert {f"metrics.{name}" for name in expected} <= {*found, "metrics.count_batch"}
    assert any("count_batch" in name for name in found)


async def test_a_report_that_fails_leaves_the_other_metrics_readable(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:

    def reports(digests: Any) -> Any:
        raise ValueError("SECRET")

    monkeypatch.setattr(served.state.feedback, "reports", reports)
    response = await served.client.get("/metrics")
    assert response.status_code == 200
    assert "laplora_ready 1.0" in response.text


def test_every_phase_is_told_even_where_a_gauge_fails() -> None:
    metrics = Metrics()
    metrics.ready = Broken()  # type: ignore[assignment]
    for phase in get_args(Phase):
        metrics.set_phase(phase)
    assert 'laplora_startup_phase{phase="failed"} 1.0' in generate_latest(metrics.registry).decode()


@pytest.mark.slow
def test_artifacts_come_and_go_while_answers_are_counted() -> None:
    """Two threads: without a lock the dictionary of series changes size while it is looked through."""
    registry = CollectorRegistry()
    metrics = AnswerMetrics(registry)
    predictor = FakePredictor()
    answer: Prediction = predictor.predict([predictor.row(5)])[0]
    errors: list[Exception] = []
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                metrics.count(f"artifact {number % 50}", [answer])  # type: ignore[list-item]
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(300):
            metrics.keep({"artifact 1"})
            generate_latest(registry)
    finally:
        stop.set()
        thread.join()
    assert errors == []
    metrics.keep(set())
    assert "artifact 1" not in generate_latest(registry).decode()


def test_a_series_that_begins_while_others_are_dropped() -> None:
    """Deterministic: the new series begins in the middle of the look through them."""
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
