"""Prometheus metrics of requests, queue, device and state. Labels come from closed sets: a client cannot grow them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.errors import ERROR_KINDS
from service.telemetry.answer_metrics import AnswerMetrics
from service.telemetry.batch_report import BatchOutcome, BatchReport
from service.telemetry.unfailing import unfailing

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

#: Phases of the start, in order; ``failed`` in the place of ``ready`` where the artifact cannot be served.
Phase = Literal["starting", "loading", "verifying", "warming_up", "ready", "failed"]

_LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The service's Prometheus metrics, in a registry of their own so that two applications never collide."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counter = partial(Counter, registry=self.registry)
        self._gauge = partial(Gauge, registry=self.registry)
        self._histogram = partial(Histogram, registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._of_requests()
        self._of_the_queue()
        self._of_the_device()
        self._of_the_state()
        self._answered = AnswerMetrics(self.registry)

    def _of_requests(self) -> None:
        self.requests = self._counter("laplora_requests", "Answered HTTP requests.", ["route", "method", "status"])
        self.latency = self._histogram(
            "laplora_latency_seconds",
            "Seconds of each stage of a scored request.",
            ["route", "stage"],
            buckets=_LATENCY_BUCKETS_S,
        )
        self.rejects = self._counter("laplora_rejects", "Requests refused or failed, by error code.", ["reason"])
        for kind in ERROR_KINDS:
            # From 0 on: a rate over a series that appears with its first event misses that event.
            self.rejects.labels(kind.code)
        self.answers = self._counter(
            "laplora_answers",
            "Answered inputs of POST /predict and of systemone, by the predictive that answered.",
            ["predictive"],
        )
        self.feedback = self._counter(
            "laplora_feedback_items", "Labels that came to POST /feedback, by what became of them.", ["status"]
        )
        self.shadow_rows = self._counter(
            "laplora_shadow_rows",
            "Rows that a shadow answered too, by whether its label is the active artifact's and by both decisions.",
            ["artifact", "same_label", "active_accepts", "shadow_accepts"],
        )
        self.shadow_missed = self._counter(
            "laplora_shadow_missed_rows", "Rows that a shadow was to answer and did not.", ["artifact", "reason"]
        )
        self.in_flight = self._gauge("laplora_requests_in_flight", "HTTP requests being answered.")
        self.body_bytes = self._gauge("laplora_body_bytes", "Bytes of the bodies of requests being answered.")

    def _of_the_queue(self) -> None:
        self.queue_rows = self._gauge("laplora_queue_rows", "Inputs that wait for the device.")
        self.queue_tokens = self._gauge("laplora_queue_tokens", "Tokens that wait for the device.")
        self.reserved_rows = self._gauge(
            "laplora_reserved_rows", "Inputs that hold a place in the queue, those being tokenised included."
        )
        self.reserved_tokens = self._gauge(
            "laplora_reserved_tokens", "Tokens that hold a place in the queue, estimated for texts being tokenised."
        )
        self.tokenize_bytes = self._gauge("laplora_tokenize_bytes", "Bytes of text that wait to be tokenised or are.")
        self.queue_max_rows = self._gauge("laplora_queue_max_rows", "Most inputs that may wait.")
        self.queue_max_tokens = self._gauge("laplora_queue_max_tokens", "Most tokens that may wait.")
        self.queue_oldest = self._gauge(
            "laplora_queue_oldest_age_seconds",
            "Seconds that the oldest waiting input of a request has waited, 0 where none waits. "
            "Rows of jobs have time.",
        )

    def _of_the_device(self) -> None:
        self.batches = self._counter("laplora_batches", "Device runs.", ["predictive", "outcome"])
        self.batch_rows = self._histogram(
            "laplora_batch_rows", "Rows of each device run.", ["predictive"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
        )
        self.batch_padding = self._histogram(
            "laplora_batch_padding_ratio",
            "Share of each device run's tokens that was padding.",
            ["predictive"],
            buckets=(0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
        )
        self.batch_seconds = self._histogram(
            "laplora_batch_seconds", "Seconds of each device run.", ["predictive"], buckets=_LATENCY_BUCKETS_S
        )
        self.device_busy = self._counter(
            "laplora_device_busy_seconds",
            "Seconds that batches ran on the device, failed ones too; a batch counts once it is over.",
        )
        self.jobs = self._gauge(
            "laplora_jobs",
            "Large evaluations kept, by status; store is shared where all servers count the same ones.",
            ["store", "status"],
        )
        self.job_rows = self._counter("laplora_job_rows", "Inputs of large evaluations answered and on disk.")
        self.job_bad_rows = self._counter(
            "laplora_job_bad_rows", "Inputs of large evaluations that could not be scored, left out and recorded."
        )

    def _of_the_state(self) -> None:
        self.ready = self._gauge("laplora_ready", "1 while new requests are to be sent here, as /health/ready says.")
        self.draining = self._gauge("laplora_draining", "1 once the server takes no new requests.")
        self.phase = self._gauge("laplora_startup_phase", "1 for the phase that the start is in.", ["phase"])
        self.set_phase("starting")
        self.abandoned_load = self._gauge(
            "laplora_abandoned_load", "1 while an artifact's load that was given up still runs: no other can be loaded."
        )
        self.artifact = self._gauge(
            "laplora_artifact_info",
            "1 for each loaded artifact; active is true for the one that answers where a request names none.",
            ["name", "digest", "active"],
        )
        self.loop_lag = self._histogram(
            "laplora_event_loop_lag_seconds",
            "Seconds by which the event loop was late to run what was due, looked at ten times a second; the sum's "
            "rate is the share of time in which it was blocked.",
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
        )
        self.build = self._gauge(
            "laplora_build_info", "1 for the versions that run.", ["version", "python", "torch", "transformers"]
        )
        packages = [_version(name) for name in ("torch", "transformers")]
        self.build.labels(_version("laplora"), platform.python_version(), *packages).set(1)

    @unfailing("metrics.count_in_flight")
    def count_in_flight(self, more: int) -> None:
        """Count a request that begins (1) or has ended (-1)."""
        self.in_flight.inc(more)

    @unfailing("metrics.count_request")
    def count_request(self, route: str, method: str, status: int) -> None:
        """Count an answered request; all three from closed sets."""
        self.requests.labels(route, method, str(status)).inc()

    @unfailing("metrics.count_reject")
    def count_reject(self, code: str) -> None:
        """Count a request that was refused or failed."""
        self.rejects.labels(code).inc()

    @unfailing("metrics.count_feedback")
    def count_feedback(self, status: str, count: int) -> None:
        """Count labels by what became of them."""
        self.feedback.labels(status).inc(count)

    @unfailing("metrics.count_shadow")
    def count_shadow(self, artifact: str, same: bool, active_accepts: bool, shadow_accepts: bool) -> None:
        """Count a row that a shadow answered too."""
        self.shadow_rows.labels(artifact, *(str(by).lower() for by in (same, active_accepts, shadow_accepts))).inc()

    @unfailing("metrics.count_shadow_missed")
    def count_shadow_missed(self, artifact: str, reason: str, rows: int) -> None:
        """Count rows that a shadow did not answer."""
        self.shadow_missed.labels(artifact, reason).inc(rows)

    @unfailing("metrics.clear_shadow")
    def clear_shadow(self) -> None:
        """Let the series of a shadow end."""
        self.shadow_rows.clear()
        self.shadow_missed.clear()

    @unfailing("metrics.count_job_rows")
    def count_job_rows(self, rows: int, *, bad: int) -> None:
        """Count inputs of large evaluations that are on disk: answered, or left out."""
        self.job_rows.inc(rows)
        self.job_bad_rows.inc(bad)

    @unfailing("metrics.set_jobs")
    def set_jobs(self, status: str, count: int, *, shared: bool) -> None:
        """Say how many large evaluations have a status, in a database that is shared or in this server's own."""
        self.jobs.labels("shared" if shared else "own", status).set(count)

    @unfailing("metrics.observe_loop_lag")
    def observe_loop_lag(self, seconds: float) -> None:
        """Count one look at the event loop."""
        self.loop_lag.observe(seconds)

    @unfailing("metrics.count_batch")
    def count_batch(self, report: BatchReport) -> None:
        for outcome in get_args(BatchOutcome):
            self.batches.labels(report.predictive, outcome).inc(outcome == report.outcome)
        self.batch_rows.labels(report.predictive).observe(report.rows)
        self.batch_padding.labels(report.predictive).observe(1 - report.tokens / max(report.padded_tokens, 1))
        self.batch_seconds.labels(report.predictive).observe(report.duration_s)
        self.device_busy.inc(report.duration_s)

    @unfailing("metrics.count_stages")
    def count_stages(self, route: str, stages_ms: dict[str, float]) -> None:
        """Count one scored request's stages, given in milliseconds."""
        for stage, duration_ms in stages_ms.items():
            self.latency.labels(route, stage).observe(duration_ms / 1000)

    @unfailing("metrics.count_answers")
    def count_answers(self, artifact: str, predictive: str, answers: Sequence[Prediction]) -> None:
        """Count one request's answers by a loaded artifact and a predictive."""
        self.answers.labels(predictive).inc(len(answers))
        self._answered.count(artifact, answers)

    @unfailing("metrics.set_phase")
    def set_phase(self, phase: Phase) -> None:
        """Say how far the start has come."""
        for each in get_args(Phase):
            self.phase.labels(each).set(each == phase)

    @unfailing("metrics.set_abandoned_load")
    def set_abandoned_load(self, runs: bool) -> None:
        """Say whether a load that was given up still runs."""
        self.abandoned_load.set(runs)

    @unfailing("metrics.set_artifacts")
    def set_artifacts(self, loaded: Sequence[tuple[str, str, bool]]) -> None:
        """Name the loaded artifacts: name, digest, and whether it is the active one. Series of others end."""
        self.artifact.clear()
        for name, digest, active in loaded:
            self.artifact.labels(name, digest, str(active).lower()).set(1)
        self._answered.keep({name for name, _, _ in loaded})

    @unfailing("metrics.set_draining")
    def set_draining(self) -> None:
        """Say that no new requests are taken."""
        self.draining.set(1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # Run from a folder that was copied, not installed.
        return "unknown"
