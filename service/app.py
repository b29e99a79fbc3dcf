"""The application: its parts, their wiring, and their life from the first request to the last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from service.artifacts.host import ArtifactHost
from service.artifacts.loading import CPU_BATCH_TOKENS
from service.artifacts.predictors import Library, default_library
from service.errors import TracingUnavailableError
from service.feedback.gauges import CalibrationGauges
from service.feedback.labels import FeedbackStore
from service.http import error_answers, openapi
from service.http.headers import SafeHeaders, cors_options
from service.http.in_flight import InFlight, SharedLimit
from service.http.request_context import RequestContext
from service.http.routes import artifacts, evaluate, feedback, health, jobs, metrics, predict
from service.jobs.board import JobBoard
from service.lifecycle import Lifecycle
from service.scoring.admission import Amount
from service.scoring.device import Device
from service.scoring.device_faults import DeviceHealth
from service.scoring.queue import Queue
from service.scoring.scorer import Scorer
from service.security.access import Access
from service.security.keyring import Keyring, open_keyring
from service.settings import Settings
from service.telemetry import event_loop
from service.telemetry.metrics import Metrics
from service.threads import OneEach, Threads

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing


_ROUTERS = (
    predict.router,
    feedback.router,
    evaluate.router,
    jobs.router,
    artifacts.router,
    health.router,
    metrics.router,
)


@dataclass
class _Parts:
    """The application's parts; each endpoint is given those that it needs (service/http/routes/dependencies.py)."""

    settings: Settings
    metrics: Metrics
    tracing: Tracing | None
    keyring: Keyring | None
    threads: Threads
    queue: Queue
    device: Device
    scorer: Scorer
    artifacts: ArtifactHost
    jobs: JobBoard
    feedback: FeedbackStore
    lifecycle: Lifecycle
    requests: SharedLimit
    body_bytes: SharedLimit
    event_streams: SharedLimit
    measure_threads: OneEach
    parse_threads: Executor


def create_app(
    settings: Settings,
    *,
    library: Library | None = None,
    on_load_failure: Callable[[Exception], None] | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the application. The artifact loads in the background once the application starts.

    Args:
        library: how artifacts are read and loaded; the real calls when None.
        on_load_failure: called, in the loading thread, when the configured artifact cannot be served.
        on_change: called after models came into memory or went, in the thread that saw to it.

    Raises:
        TracingUnavailableError: traces are asked for and OpenTelemetry is not installed.
        KeysFileError: API keys are asked for, and there is no file of them that can be used.
    """
    parts = _parts(settings, library or default_library(), on_load_failure, on_change)
    app = FastAPI(
        title="laplora",
        version=openapi.API_VERSION,
        description=openapi.describe(settings),
        generate_unique_id_function=openapi.operation_id,
        lifespan=lambda app: _life(parts),
        # FastAPI's own, which the environment can switch on, sends exceptions' messages and query strings: both can
        # hold a client's text. See service/telemetry/tracing.py for what is traced instead.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        docs_url=None,
        redoc_url=None,
        # A path with a slash too much is no path of ours: a redirect would go where the Host header says.
        redirect_slashes=False,
    )
    for name, part in vars(parts).items():
        setattr(app.state, name, part)

    def check_queue(caller: str) -> None:
        parts.artifacts.require_taking()
        parts.queue.check_room(caller)

    # The last one added is the first that a request meets.
    app.add_middleware(
        InFlight,
        requests=parts.requests,
        body_bytes=parts.body_bytes,
        check_queue=check_queue,
        answer=error_answers.answer,
    )
    if parts.keyring is not None:
        app.add_middleware(Access, keyring=parts.keyring, answer=error_answers.answer)
    app.add_middleware(RequestContext, metrics=parts.metrics, tracing=parts.tracing)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins.split(",")))
    app.add_middleware(SafeHeaders, docs_script=openapi.docs_script(app))
    for router in _ROUTERS:
        app.include_router(router)
    openapi.install(app, with_keys=parts.keyring is not None)
    error_answers.install(app, _ROUTERS)
    return app


def _parts(
    settings: Settings,
    library: Library,
    on_load_failure: Callable[[Exception], None] | None,
    on_change: Callable[[], None],
) -> _Parts:
    keyring = open_keyring(settings)
    metrics, tracing, threads = Metrics(), _tracing(settings), Threads()
    share = settings.client_share
    queue = Queue(
        Amount(settings.max_queue_rows, settings.max_queue_tokens, settings.tokenize_bytes), client_share=share
    )
    health = DeviceHealth(stall_s=settings.stall_s, hang_s=settings.run_limit_s, on_fault=lambda: metrics.ready.set(0))
    device = Device(
        queue,
        token_budget=settings.batch_tokens or CPU_BATCH_TOKENS,
        on_batch=(metrics.count_batch,) if tracing is None else (metrics.count_batch, tracing.batch),
        health=health,
    )
    scorer = Scorer(queue, device, threads.pool("tokenize", 2))
    artifacts = ArtifactHost(settings, device, metrics, library, threads, on_load_failure, on_change)
    jobs = JobBoard(settings, scorer, artifacts, metrics)
    feedback = FeedbackStore(
        keep_s=settings.feedback_keep_s, rows=settings.feedback_rows, window=settings.feedback_window
    )
    requests = SharedLimit("requests", "max_requests", settings.max_requests, share)
    body_bytes = SharedLimit("bytes of bodies", "max_in_flight_bytes", settings.in_flight_bytes, share)
    lifecycle = Lifecycle(
        on_leave=(metrics.set_leaving,),
        on_drain=(jobs.drain, metrics.set_draining, queue.drain),
        on_stop=(device.stop,),
    )
    _read_at_scrapes(metrics, queue, body_bytes, settings)
    if feedback.on:
        gauges = CalibrationGauges(lambda: feedback.reports(artifacts.loaded_digests), lambda: len(feedback))
        metrics.registry.register(gauges)
    return _Parts(
        settings,
        metrics,
        tracing,
        keyring,
        threads,
        queue,
        device,
        scorer,
        artifacts,
        jobs,
        feedback,
        lifecycle,
        requests,
        body_bytes,
        event_streams=SharedLimit("streams of events", "max_event_streams", settings.max_event_streams, share),
        measure_threads=OneEach(threads.pool("measure", 2)),
        parse_threads=threads.pool("parse", 1),
    )


def _read_at_scrapes(metrics: Metrics, queue: Queue, body_bytes: SharedLimit, settings: Settings) -> None:
    """Let the gauges of what waits be read when they are scraped."""
    for gauge, read in (
        (metrics.body_bytes, lambda: body_bytes.total),
        (metrics.queue_rows, lambda: queue.rows),
        (metrics.queue_tokens, lambda: queue.tokens),
        (metrics.queue_oldest, lambda: queue.oldest_wait_s(time.monotonic())),
        (metrics.reserved_rows, lambda: queue.held.rows),
        (metrics.reserved_tokens, lambda: queue.held.tokens),
        (metrics.tokenize_bytes, lambda: queue.held.text_bytes),
    ):
        gauge.set_function(read)
    metrics.queue_max_rows.set(settings.max_queue_rows)
    metrics.queue_max_tokens.set(settings.max_queue_tokens)


@asynccontextmanager
async def _life(parts: _Parts) -> AsyncIterator[None]:
    if parts.keyring is not None:
        parts.keyring.start()
    parts.device.start()
    parts.artifacts.start()
    await parts.jobs.open()
    try:
        async with event_loop.watched(parts.metrics.observe_loop_lag):
            yield
    finally:
        lifecycle = parts.lifecycle
        lifecycle.stop()
        closing_jobs = asyncio.create_task(parts.jobs.close())
        await asyncio.wait({closing_jobs}, timeout=lifecycle.left_s)
        closing = None if parts.tracing is None else parts.tracing.close()
        parts.device.stop(join_timeout_s=lifecycle.left_s)
        if closing is not None:
            closing.join(lifecycle.left_s)
        if parts.keyring is not None:
            parts.keyring.stop()
        parts.threads.stop()


def _tracing(settings: Settings) -> Tracing | None:
    if settings.otlp_endpoint is None:
        return None
    try:
        from service.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise TracingUnavailableError(
            f"--otlp-endpoint needs OpenTelemetry, and {error.name} is not installed: pip install '.[telemetry]', or "
            "leave the flag out"
        ) from None
    return Tracing(settings.otlp_endpoint)
