"""Metrics and traces that fail, or are read while they change: answers, loads and the device go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from serving import FakePredictor, Served, artifacts_in, serve

from service.telemetry import unfailing as module
from service.telemetry.answer_metrics import AnswerMetrics
from service.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def nothing_failed_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_failed", set())


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
    assert response.status_code == 200
    assert "laplora_ready 1.0" in response.text


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
