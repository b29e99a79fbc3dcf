"""The application: its parts, their wiring, and their life from the first request to the last."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from laplora.errors import install
from service.artifacts.conditioning import Conditioner
from service.artifacts.host import ArtifactHost
from service.artifacts.predictors import Library, default_library
from service.backends.local import Local
from service.backends.readiness import is_ready, watch
from service.changes.board import Changes
from service.deployment.feedback import SharedFeedback
from service.deployment.following import Following
from service.errors import TracingUnavailableError
from service.feedback.gauges import CalibrationGauges
from service.feedback.labels import FeedbackStore
from service.http import error_answers, openapi
from service.http.compression import PackedAnswers
from service.http.first_look import FirstLook
from service.http.headers import SafeHeaders
from service.http.in_flight import InFlight, SharedLimit
from service.http.request_context import RequestContext
from service.http.routes import (
    artifacts,
    changes,
    condition,
    evaluate,
    feedback,
    health,
    job_report,
    job_rows,
    jobs,
    page,
    planning,
    predict,
    shadow,
    suggest,
    systemone,
)
from service.http.routes.job_contract import read_uploaded
from service.http.versioned import Versioned
from service.jobs.board import JobBoard
from service.lifecycle import Lifecycle
from service.scoring.backend import Backend
from service.scoring.scorer import Scorer
from service.scoring.tokenizing import TOKENIZE_THREADS
from service.security.access import Access
from service.security.keyring import open_keyring
from service.settings import Settings
from service.shadow.candidate import Candidate
from service.telemetry import event_loop
from service.telemetry.batch_report import BatchReport
from service.telemetry.metrics import Metrics
from service.threads import OneAtATime, OneEach, Threads, in_daemon_thread
from service.upstream import UpstreamModel

if TYPE_CHECKING:
    from service.scoring.model import Model
    from service.telemetry.tracing import Tracing

#: The routers of the API's own endpoints.
_NATIVE = (
    predict.router,
    feedback.router,
    evaluate.router,
    suggest.router,
    jobs.router,
    job_rows.router,
    job_report.router,
    artifacts.router,
    condition.router,
    shadow.router,
    changes.router,
    health.router,
)

#: Makes who has the weights, of settings, how artifacts are loaded, the metrics, and who watches batches.
MakeBackend = Callable[[Settings, Library, Metrics, Sequence[Callable[[BatchReport], None]]], Backend]


def local_backend(
    settings: Settings, library: Library, metrics: Metrics, on_batch: Sequence[Callable[[BatchReport], None]]
) -> Local:
    return Local(settings, library, on_batch=on_batch)


class _Parts:
    """The application's parts; each endpoint is given those that it needs (service/http/routes/dependencies.py)."""

    def __init__(
        self,
        settings: Settings,
        library: Library,
        make_backend: MakeBackend,
        on_load_failure: Callable[[Exception], None] | None,
        on_change: Callable[[], None],
        on_failed: Callable[[], None],
    ) -> None:
        self.on_failed = on_failed
        share = settings.client_share
        self.settings = settings
        self.keyring = open_keyring(settings)
        self.metrics = Metrics()
        self.tracing = _tracing(settings)
        self.threads = Threads()
        tell = () if self.tracing is None else (self.tracing.batch,)
        self.backend = make_backend(settings, library, self.metrics, (self.metrics.count_batch, *tell))
        self.upstream = UpstreamModel(settings)
        self.scorer = Scorer(self.backend, self.threads.pool("tokenize", TOKENIZE_THREADS), self.upstream.answer)

        def changed() -> None:
            if settings.feedback_rows:
                # scipy's second: neither before the first answer nor at somebody's first look
                in_daemon_thread("laplora-figures", partial(import_module, "service.feedback.figures"))
            on_change()

        self.artifacts = ArtifactHost(
            settings, self.backend, self.metrics, library, self.threads, on_load_failure, changed
        )
        self.conditioner = Conditioner(self.artifacts, self.backend)
        self.jobs = JobBoard(settings, self.scorer, self.artifacts, self.metrics, read_uploaded)
        self.feedback = FeedbackStore(
            keep_s=settings.feedback_keep_s, rows=settings.feedback_rows, window=settings.feedback_window
        )
        self.candidate = Candidate(self.artifacts, self.scorer, self.feedback, self.metrics)
        self.following = Following(settings, self.jobs.ledger.disk, self.artifacts, self.candidate)
        self.changes = Changes(settings, self.jobs.ledger.disk, self.following.tell)
        self.shared_feedback = SharedFeedback(settings, self.jobs.ledger.disk, self.feedback)
        self.requests = SharedLimit("requests", "max_requests", settings.max_requests, share, lent=True)
        self.body_bytes = SharedLimit("bytes of bodies", "max_in_flight_bytes", settings.in_flight_bytes, share)
        most_numbers = math.ceil(planning.MOST_ANSWERS * planning.MOST_NUMBERS / share)
        self.answer_numbers = SharedLimit("numbers of answers", "the most of all together", most_numbers, share)
        self.downloads = SharedLimit("downloads", "max_job_downloads", settings.max_job_downloads, share)
        self.reports = OneAtATime(self.threads.pool("report", 1))
        self.measure_threads = OneEach(self.threads.pool("measure", 2))
        self.parse_threads = self.threads.pool("parse", 1)
        self.lifecycle = Lifecycle(
            leave_s=settings.leave_s,
            on_drain=(self.jobs.drain, self.metrics.set_draining, self.backend.drain),
            on_stop=(self.backend.stop,),
        )


def create_app(
    settings: Settings,
    *,
    backend: MakeBackend = local_backend,
    library: Library | None = None,
    on_load_failure: Callable[[Exception], None] | None = None,
    on_change: Callable[[], None] = lambda: None,
    on_failed: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the application. The artifact loads in the background once the application starts.

    Args:
        backend: makes who has the weights; the device of this process unless another is given.
        library: how artifacts are read and loaded; the real calls when None.
        on_load_failure: called, in the loading thread, when the configured artifact cannot be served.
        on_change: called after models came into memory or went, in the thread that saw to it.
        on_failed: called on the event loop when the device has failed for good and what was open is answered: only a
            new process helps.

    Raises:
        TracingUnavailableError: traces are asked for and OpenTelemetry is not installed.
        KeysFileError: API keys are asked for, and there is no file of them that can be used.
    """
    parts = _Parts(settings, library or default_library(), backend, on_load_failure, on_change, on_failed)
    _read_at_scrapes(parts)
    app = FastAPI(
        title="laplora",
        version=openapi.API_VERSION,
        description=openapi.describe(settings),
        generate_unique_id_function=lambda route: route.name,
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
        parts.backend.check_room(caller)

    # The last one added is the first that a request meets.
    app.add_middleware(
        InFlight,
        requests=parts.requests,
        body_bytes=parts.body_bytes,
        answer_numbers=parts.answer_numbers,
        check_queue=check_queue,
        answer=error_answers.answer,
    )
    if parts.keyring is not None:
        app.add_middleware(Access, keyring=parts.keyring, answer=error_answers.answer)
    origins = settings.cors_origins.split(",") if settings.cors_origins else []
    # A page has no key, so that any name will do where keys are asked for.
    named = settings.auth == "off" and "*" not in settings.allowed_hosts
    hosts = {settings.host.lower(), *settings.allowed_hosts} if named else None
    app.add_middleware(FirstLook, origins=origins, hosts=hosts, answer=error_answers.answer)
    app.add_middleware(RequestContext, metrics=parts.metrics, tracing=parts.tracing)
    if origins:
        # No cookies, and the API's own headers alone.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-ID"],
            expose_headers=["Location", "Retry-After", "X-Request-ID"],
        )
    # Every piece of an answer is flushed, so that all lines before a download broke off can be read.
    app.add_middleware(PackedAnswers, minimum_size=1024, compresslevel=1)
    app.add_middleware(SafeHeaders, docs_script=openapi.docs_script(app))
    paths = [route.path for router in _NATIVE for route in router.routes if isinstance(route, APIRoute)]
    app.add_middleware(Versioned, names={path.split("/")[1] for path in paths})
    routers = (*_NATIVE, systemone.router, page.page_router())
    for router in routers:
        app.include_router(router)
    openapi.install(app, with_keys=parts.keyring is not None)
    error_answers.install(app, routers)
    return app


def _read_at_scrapes(parts: _Parts) -> None:
    """Let the gauges of what waits, of readiness and of feedback be read when they are scraped."""
    metrics, backend, feedback = parts.metrics, parts.backend, parts.feedback
    for gauge, read in (
        (metrics.body_bytes, lambda: parts.body_bytes.total),
        (metrics.queue_rows, lambda: backend.backlog.rows),
        (metrics.queue_tokens, lambda: backend.backlog.tokens),
        (metrics.queue_oldest, lambda: backend.backlog.oldest_wait_s),
        (metrics.queue_max_rows, lambda: backend.backlog.most.rows),
        (metrics.queue_max_tokens, lambda: backend.backlog.most.tokens),
        (metrics.reserved_rows, lambda: backend.backlog.held.rows),
        (metrics.reserved_tokens, lambda: backend.backlog.held.tokens),
        (metrics.tokenize_bytes, lambda: backend.backlog.held.text_bytes),
        (metrics.ready, lambda: is_ready(parts.artifacts, parts.lifecycle, backend)),
    ):
        gauge.set_function(read)
    if feedback.on:
        gauges = CalibrationGauges(lambda: feedback.reports(parts.artifacts.models), lambda: len(feedback))
        metrics.registry.register(gauges)


@asynccontextmanager
async def _life(parts: _Parts) -> AsyncIterator[None]:
    if parts.keyring is not None:
        parts.keyring.start()
    parts.backend.start()
    await parts.jobs.open()
    parts.artifacts.start(await parts.following.first())
    parts.following.start()
    parts.shared_feedback.start()
    parts.candidate.start(partial(_activate, parts))
    watching = asyncio.create_task(watch(parts.backend, parts.lifecycle, parts.on_failed))
    try:
        async with event_loop.watched(parts.metrics.observe_loop_lag):
            yield
    finally:
        lifecycle = parts.lifecycle
        lifecycle.stop()
        watching.cancel()
        parts.candidate.stop()
        await parts.changes.close()
        await parts.following.close()
        closing_jobs = asyncio.create_task(_jobs_closed(parts))
        await asyncio.wait({closing_jobs}, timeout=lifecycle.left_s)
        await parts.upstream.close()
        closing = None if parts.tracing is None else parts.tracing.close()
        parts.backend.stop(join_timeout_s=lifecycle.left_s)
        if closing is not None:
            closing.join(lifecycle.left_s)
        if parts.keyring is not None:
            parts.keyring.stop()
        parts.threads.stop()


async def _activate(parts: _Parts, model: Model) -> None:
    name, work = model.artifact.name, partial(parts.artifacts.activate, model)
    await parts.changes.begin("activate", name, "shadow", "shadow", None, work, artifacts.activated)


async def _jobs_closed(parts: _Parts) -> None:
    await parts.shared_feedback.close()
    await parts.jobs.close()


def _tracing(settings: Settings) -> Tracing | None:
    if settings.otlp_endpoint is None:
        return None
    try:
        from service.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise TracingUnavailableError(
            f"--otlp-endpoint needs OpenTelemetry, and {error.name} is not installed: {install('telemetry')}, or leave "
            "the flag out"
        ) from None
    return Tracing(settings.otlp_endpoint)
