"""Prometheus metrics. Labels come from closed sets: a client cannot grow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.engine import BatchReport

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
