"""The application: endpoints, error answers, and the life of the engine and the artifact around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from laplora.errors import LaploraError
from service.artifacts.host import CPU_BATCH_TOKENS, ArtifactHost
from service.artifacts.library import Library, default_library
from service.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    RouteNotFoundError,
    TracingUnavailableError,
    kind_of,
    shown_field,
)
from service.feedback.gauges import CalibrationGauges
from service.feedback.labels import FeedbackStore
from service.http import openapi
from service.http.headers import SafeHeaders, cors_options
from service.http.in_flight import InFlight, Places, SharedLimit
from service.http.request_context import RequestContext, error_response
from service.http.routes import artifacts, evaluate, feedback, health, jobs, metrics, predict
from service.jobs.board import JobBoard
from service.lifecycle import Lifecycle
from service.scoring.device_faults import DeviceHealth
from service.scoring.engine import Engine
from service.scoring.scorer import Scorer
from service.security.access import Access
from service.security.keyring import open_keyring
from service.settings import Settings
from service.telemetry import event_loop
from service.telemetry.logs import log_crash
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import note
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
    keyring = open_keyring(settings)
    measures = Metrics()
    tracing = _tracing(settings)
    engine = Engine(
        token_budget=settings.batch_tokens or CPU_BATCH_TOKENS,
        max_queue_tokens=settings.max_queue_tokens,
        max_queue_rows=settings.max_queue_rows,
        max_tokenize_bytes=settings.tokenize_bytes,
        client_share=settings.client_share,
        on_batch=(measures.count_batch,) if tracing is None else (measures.count_batch, tracing.batch),
        health=DeviceHealth(
            stall_s=settings.stall_s, hang_s=settings.run_limit_s, on_fault=lambda: measures.ready.set(0)
        ),
    )
    places = Places(
        max_requests=settings.max_requests, max_bytes=settings.in_flight_bytes, client_share=settings.client_share
    )
    measures.body_bytes.set_function(lambda: places.body_bytes)
    _watch_queue(measures, engine, settings)
    store = FeedbackStore(keep_s=settings.feedback_keep_s, rows=settings.feedback_rows, window=settings.feedback_window)
    threads = Threads()
    artifact_host = ArtifactHost(
        settings, engine, measures, library or default_library(), threads, on_load_failure, on_change
    )
    scorer = Scorer(engine, threads.pool("tokenize", 2))
    board = JobBoard(settings, scorer, artifact_host, measures)
    lifecycle = Lifecycle(
        on_leave=(measures.set_leaving,),
        on_drain=(board.drain, measures.set_draining, engine.drain),
        on_stop=(engine.stop,),
    )

    def check_queue(caller: str) -> None:
        artifact_host.require_taking()
        engine.admission.check_room(caller)

    if store.on:
        measures.registry.register(
            CalibrationGauges(lambda: store.reports(artifact_host.loaded_digests), lambda: len(store))
        )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if keyring is not None:
            keyring.start()
        engine.start()
        artifact_host.start()
        await board.open()
        try:
            async with event_loop.watched(measures.observe_loop_lag):
                yield
        finally:
            lifecycle.stop()
            closing_jobs = asyncio.create_task(board.close())
            await asyncio.wait({closing_jobs}, timeout=lifecycle.left_s)
            closing = None if tracing is None else tracing.close()
            engine.stop(join_timeout_s=lifecycle.left_s)
            if closing is not None:
                closing.join(lifecycle.left_s)
            if keyring is not None:
                keyring.stop()
            threads.stop()

    app = FastAPI(
        title="laplora",
        version=openapi.API_VERSION,
        description=openapi.describe(settings),
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
        # FastAPI's own, which the environment can switch on, sends exceptions' messages and query strings: both can
        # hold a client's text. See service/telemetry/tracing.py for what is traced instead.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        docs_url=None,
        redoc_url=None,
        # A path with a slash too much is no path of ours: a redirect would go where the Host header says.
        redirect_slashes=False,
    )
    # What endpoints are given: see service/http/routes/dependencies.py.
    app.state.settings, app.state.engine, app.state.scorer = settings, engine, scorer
    app.state.artifacts, app.state.feedback, app.state.jobs = artifact_host, store, board
    app.state.metrics, app.state.lifecycle, app.state.places = measures, lifecycle, places
    app.state.threads, app.state.parse_threads = threads, threads.pool("parse", 1)
    app.state.measure_threads = OneEach(threads.pool("measure", 2))
    app.state.event_streams = SharedLimit(
        "streams of events", "max_event_streams", settings.max_event_streams, settings.client_share
    )
    # The last one added is the first that a request meets.
    app.add_middleware(InFlight, places=places, check_queue=check_queue, answer=_answer)
    if keyring is not None:
        app.add_middleware(Access, keyring=keyring, answer=_answer)
    app.add_middleware(RequestContext, metrics=measures, tracing=tracing)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins.split(",")))
    app.add_middleware(SafeHeaders, docs_script=openapi.docs_script(app))
    for router in _ROUTERS:
        app.include_router(router)
    openapi.install(app, with_keys=keyring is not None)
    app.add_exception_handler(LaploraError, _answer)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    return app


def _watch_queue(metrics: Metrics, engine: Engine, settings: Settings) -> None:
    """Let the queue's gauges be read when they are scraped."""
    metrics.queue_rows.set_function(lambda: engine.queued_rows)
    metrics.queue_tokens.set_function(lambda: engine.queued_tokens)
    metrics.queue_oldest.set_function(lambda: engine.oldest_wait_s)
    metrics.reserved_rows.set_function(lambda: engine.admission.total.rows)
    metrics.reserved_tokens.set_function(lambda: engine.admission.total.tokens)
    metrics.tokenize_bytes.set_function(lambda: engine.admission.total.text_bytes)
    metrics.queue_max_rows.set(settings.max_queue_rows)
    metrics.queue_max_tokens.set(settings.max_queue_tokens)


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


async def _answer(request: Request, error: Exception) -> JSONResponse:
    kind = kind_of(error)
    request.app.state.metrics.count_reject(kind.code)
    if kind.status == 500:
        log_crash("request failed", error)
    note(request, code=kind.code)
    return error_response(error)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # The first problem only, by place and kind: the input that pydantic keeps beside it is never sent.
    first = error.errors()[0]
    path = shown_field(".".join(str(part) for part in first["loc"] if part != "body") or "body")
    bounds = {name: value for name, value in first.get("ctx", {}).items() if name.startswith(("max_", "min_"))}
    limit = next((value for value in bounds.values() if isinstance(value, int)), None)
    got = first.get("ctx", {}).get("actual_length")
    return await _answer(
        request,
        InvalidRequestError(f"{path[:200]}: {first['msg']}", field=path, limit=limit, got=got),
    )


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return await _answer(request, RouteNotFoundError("no endpoint at this path: /docs lists them"))
    if error.status_code == 405:
        response = await _answer(request, MethodNotAllowedError("the endpoint takes another method: see Allow"))
        # The router names the methods of the first route at this path; there may be several.
        response.headers["allow"] = ", ".join(sorted(_methods_at(request))) or (error.headers or {}).get("Allow", "")
        return response
    return await _answer(request, InvalidRequestError(str(error.detail)))


def _methods_at(request: Request) -> set[str]:
    """Return the methods of every route at the request's path."""
    routes = [route for routes in (request.app.routes, *(router.routes for router in _ROUTERS)) for route in routes]
    path = request.scope["path"]
    found = [route for route in routes if isinstance(route, Route) and route.path_regex.match(path)]
    return {method for route in found for method in route.methods or ()}
