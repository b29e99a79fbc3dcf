"""From parsed inputs to predictions: tokenize off the event loop, queue, await; give up when nobody waits.

Shared by the predict and evaluate endpoints. Nothing here reads or writes HTTP bodies.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from fastapi import Request

from laplora.errors import ArtifactNotFoundError
from service.artifacts.host import ArtifactHost
from service.errors import (
    ArtifactNotLoadedError,
    BatchTooLargeError,
    ClientGoneError,
    DeadlineError,
    DrainingError,
    InvalidRequestError,
)
from service.feedback.labels import FeedbackStore
from service.http.in_flight import Places, SharedLimit
from service.scoring.admission import Amount, Reservation, TokenEstimate
from service.scoring.engine import Ask, Engine
from service.scoring.tokenizing import encode_all, text_sizes
from service.scoring.workers import Workers
from service.security.callers import Caller
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord

if TYPE_CHECKING:
    from laplora.answers.order_answers import OrderedRows
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor
    from laplora.prompts.templates import EncodedRow
    from service.http.schemas.inputs import Input
    from service.http.schemas.predict import PredictOptions
    from service.jobs.board import JobBoard

T = TypeVar("T")


#: Seconds in which the process leaves once nothing is answered any more: answers on their way out, a batch under way,
#: the last traces. One less than the 5 that are promised.
LEAVE_S = 4.0
#: Seconds in which the disk is to say whether an artifact that is not loaded is there.
LOOK_UP_S = 1.0


@dataclass
class ServiceState:
    """What the endpoints share; lives on ``app.state.service``.

    Attributes:
        workers: the threads for what would keep the event loop.
        feedback: answered predictions, until their labels come.
        places: how many requests are being answered, and of whom.
        event_streams: how many streams of jobs' events are open, and of whom.
        jobs: the large evaluations.
        leaving: set once readiness fails because the server is about to stop; requests are answered as before.
        draining: set once the server takes no new requests; it is leaving then.
        leave_by: ``time.monotonic`` seconds by which the process should have left; infinity before ``stop``.
    """

    settings: Settings
    engine: Engine
    host: ArtifactHost
    metrics: Metrics
    workers: Workers
    feedback: FeedbackStore
    places: Places
    leaving: bool = False
    draining: bool = False
    leave_by: float = math.inf
    jobs: JobBoard = field(init=False)
    event_streams: SharedLimit = field(init=False)
    estimates: WeakKeyDictionary[Predictor, TokenEstimate] = field(default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        """Make what its settings alone say."""
        self.event_streams = SharedLimit(
            "streams of events", "max_event_streams", self.settings.max_event_streams, self.settings.client_share
        )

    def token_estimate(self, predictor: Predictor) -> TokenEstimate:
        """Return what was learned of an artifact's tokens per byte."""
        return self.estimates.setdefault(predictor, TokenEstimate())

    def check_queue(self, caller: str) -> None:
        """Check that the queue would take a short request of a caller.

        Raises:
            DeviceFaultError, DrainingError, NotReadyError: the server takes no requests.
            ClientQueueFullError, QueueFullError: there is no room.
        """
        check_taking(self)
        self.engine.admission.check_room(caller)

    def reserve(self, caller: Caller, predictor: Predictor, sizes: Sequence[int], orders: Sequence[int]) -> Reservation:
        """Return room in the queue for prompts of these many bytes each, in these many orders each.

        Raises:
            DrainingError, BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Engine.reserve``.
        """
        estimate, bounds, most = self.token_estimate(predictor), predictor.token_bounds, predictor.max_tokens
        prompts = list(zip(sizes, orders, strict=True))
        asked = Amount(
            rows=sum(orders),
            tokens=sum(count * estimate.tokens(size, most) for size, count in prompts),
            text_bytes=sum(count * size for size, count in prompts),
        )
        fewest = sum(count * min(most, bounds.fewest(size)) for size, count in prompts)
        return self.engine.reserve(caller.name, asked, fewest_tokens=fewest)

    def leave(self) -> None:
        """Let readiness fail, so that requests go elsewhere; those that come all the same are still answered."""
        self.leaving = True
        self.metrics.set_leaving()

    def drain(self) -> None:
        """Take no new requests; those in flight are still answered. Jobs stop, to go on at the next start."""
        self.leave()
        self.draining = True
        self.jobs.drain()
        self.metrics.set_draining()
        self.engine.drain()

    def stop(self) -> None:
        """Answer what is left with 503; from now on ``leave_by`` counts."""
        self.leave_by = min(self.leave_by, time.monotonic() + LEAVE_S)
        self.drain()
        self.engine.stop()

    @property
    def left_s(self) -> float:
        """Seconds until ``leave_by``, at least 0."""
        return max(0.0, self.leave_by - time.monotonic())


@dataclass(frozen=True)
class Scored:
    """One request's predictions, in the order of its inputs, and its stages in milliseconds.

    ``own_order`` holds, where several orders were asked and averaged, the predictions in the user's own order alone.
    """

    predictions: list[Prediction]
    own_order: list[Prediction] | None
    queue_ms: float
    tokenize_ms: float
    compute_ms: float


@asynccontextmanager
async def lease(state: ServiceState, artifact: str | None) -> AsyncIterator[Predictor]:
    """Yield the predictor of a loaded artifact, None for the active one; inside the block it stays in memory.

    Raises:
        DeviceFaultError, DrainingError, NotReadyError: none takes requests.
        ArtifactNotFoundError, ArtifactNotLoadedError: as ``require_loaded``.
    """
    check_taking(state)
    if artifact is not None:
        await require_loaded(state, artifact)
    with state.host.lease(artifact) as predictor:
        yield predictor


async def require_loaded(state: ServiceState, name: str) -> None:
    """Return if an artifact is loaded.

    Only a name that is not is looked for on the disk, and never on the event loop: the disk may not answer.

    Raises:
        ArtifactNotFoundError: no artifact has that name.
        ArtifactNotLoadedError: it is not loaded; where the disk takes more than ``LOOK_UP_S``, it may not exist either.
    """
    host, loop = state.host, asyncio.get_running_loop()
    if host.shelf.find(name) is not None:
        return
    active = host.require_active().artifact.name
    with suppress(TimeoutError):
        try:
            await asyncio.wait_for(loop.run_in_executor(state.workers.names, host.path_of, name), LOOK_UP_S)
        except ArtifactNotFoundError as error:
            raise ArtifactNotFoundError(f"{error}; {active!r} is active") from None
    raise ArtifactNotLoadedError(
        f"the artifact is not loaded: load it, or leave the field out for {active!r}", field="artifact"
    )


def check_taking(state: ServiceState) -> Predictor:
    """Return the active predictor, if the server takes requests.

    Raises:
        DeviceFaultError, DrainingError, NotReadyError: it does not.
    """
    state.engine.health.require_no_fault()
    if state.draining:
        raise DrainingError("the server is stopping and takes no new requests")
    return state.host.require_active()


def check_ready(state: ServiceState) -> Predictor:
    """Return the active predictor, if new requests are to be sent here.

    Raises:
        DeviceFaultError, DeviceStalledError, DrainingError, NotReadyError: they are not.
    """
    predictor = check_taking(state)
    if state.leaving:
        raise DrainingError("the server is about to stop: send new requests elsewhere")
    state.engine.health.require_responsive()
    return predictor


def check_inputs(state: ServiceState, inputs: Sequence[Input], *, order_average: bool) -> None:
    """Check the number of prompts and that no id comes twice. The number of inputs was checked with the body.

    Args:
        order_average: whether each input is asked in several orders, and counts as many times.

    Raises:
        BatchTooLargeError: more prompts than ``max_inputs``.
        InvalidRequestError: an id that two inputs share.
    """
    limit = state.settings.max_inputs
    prompts = sum(_orders(item.template_fields) for item in inputs) if order_average else len(inputs)
    if prompts > limit:
        raise BatchTooLargeError(
            f"order_average makes {prompts} prompts of the request's {len(inputs)} inputs, max_inputs is {limit}: "
            "send it in parts",
            field="inputs",
            limit=limit,
            got=prompts,
        )
    seen: dict[str, int] = {}
    for i, item in enumerate(inputs):
        if item.id is not None and seen.setdefault(item.id, i) != i:
            raise InvalidRequestError(
                f"inputs {seen[item.id]} and {i} have the same id: make ids unique or leave them out",
                field=f"inputs.{i}.id",
            )


def _orders(fields: Mapping[str, Any]) -> int:
    """Return how many orders an input is asked in; 1 of what is refused later on."""
    from laplora.prompts.option_order import order_count

    choices = fields.get("choices")
    return order_count(len(choices)) if isinstance(choices, list) and len(choices) > 1 else 1


def what_is_asked(predictor: Predictor, options: PredictOptions) -> Ask:
    """Return which predictive answers a request, and whether the posterior is looked at beside it.

    Without a name the recommended one answers, and the posterior's variances come with it in any case; in mode
    ``map``, MAP answers from a forward pass alone, in mode ``fast``, ``fast``. A named one runs just what it needs, and
    the posterior on top if the request says mode ``laplace`` or asks for the covariance.

    Raises:
        InvalidRequestError: a name that the artifact does not have, or one that the mode contradicts; a target risk
            that the artifact cannot decide for; several orders of the choices by ``fast``.
    """
    if options.target_risk is not None and not predictor.decides_any_risk:
        raise InvalidRequestError(
            "the artifact is of an older format and decides for its own target risk only: leave target_risk out",
            field="options.target_risk",
        )
    stated = options.mode if "mode" in options.model_fields_set else None
    name: str
    if options.predictive is None:
        name, posterior = (predictor.recommended, True) if options.mode == "laplace" else (options.mode, False)
    else:
        own = stated in ("map", "fast") or options.predictive == "fast"
        name, posterior = options.predictive, stated == "laplace" or (options.covariance and not own)
    if stated == "fast" and "fast" not in predictor.predictives:
        raise InvalidRequestError(
            "the artifact has no distilled variances: leave the mode out, or package it again with predictives.fast",
            field="options.mode",
        )
    if name not in predictor.predictives:
        raise InvalidRequestError(
            f"the artifact has no predictive of that name: it has {list(predictor.predictives)}",
            field="options.predictive",
        )
    if stated in ("map", "fast") and name != stated:
        raise InvalidRequestError(
            f"mode {stated} is a forward pass with no other predictive: leave out the mode or the predictive",
            field="options.predictive",
        )
    if name == "fast" and options.order_average:
        raise InvalidRequestError(
            "the orders of the choices are not averaged by fast: leave out order_average, or ask for laplace",
            field="options.order_average",
        )
    risk = options.target_risk if name == "fast" else None
    return Ask(name, ("laplace",) if posterior and name != "laplace" else (), risk)


async def score(
    state: ServiceState,
    predictor: Predictor,
    inputs: Sequence[Mapping[str, Any]],
    *,
    ask: Ask,
    truncate: bool,
    order_average: bool,
    deadline: float,
    caller: Caller,
    record: RequestRecord | None = None,
) -> Scored:
    """Return the predictions of the inputs, in order. Cancelling this frees the queued rows.

    With ``order_average`` an input is as many rows as it has orders: each takes its place in the queue, in any batch.

    Args:
        inputs: the template's fields of each input.
        ask: which predictive, see ``what_is_asked``.
        deadline: ``time.monotonic`` seconds at which waiting rows are dropped.
        caller: who asks; a caller's requests share its part of the queue.
        record: where the stages are noted.

    Raises:
        InvalidInputError, TooManyTokensError: an input does not fit; the field names which.
        BatchTooLargeError, ClientQueueFullError, QueueFullError, DrainingError: the queue does not take it, most often
            before anything is tokenised.
        DeadlineError: the queue does not keep it.
        UnscorableInputError, DeviceMemoryError: the device has no answer for an input.
        DeviceFaultError: it has none for anybody any more.
    """
    begun = time.monotonic()
    loop = asyncio.get_running_loop()
    record = record or RequestRecord()
    orders = [_orders(fields) if order_average else 1 for fields in inputs]
    sizes = text_sizes(predictor, inputs, truncate=truncate)
    reservation = state.reserve(caller, predictor, sizes, orders)
    try:
        with record.stage("tokenize"):
            if order_average:

                def orders_of(fields: Mapping[str, Any]) -> OrderedRows:
                    return predictor.encode_orders(fields, truncate=truncate)

                each = [size * count for size, count in zip(sizes, orders, strict=True)]
                asked = await encode_all(state.workers.tokenize, orders_of, inputs, each, deadline)
                rows = [row for one in asked for row in one.rows]
                owners = [i for i, one in enumerate(asked) for _ in one.rows]
            else:

                def row_of(fields: Mapping[str, Any]) -> EncodedRow:
                    return predictor.encode(fields, truncate=truncate)

                rows = await encode_all(state.workers.tokenize, row_of, inputs, sizes, deadline)
                asked, owners = [], list(range(len(rows)))
        tokenized = time.monotonic()
        state.token_estimate(predictor).learn_rows(rows, [sizes[owner] for owner in owners])
        ticket = state.engine.submit(
            predictor,
            rows,
            ask=ask,
            deadline=deadline,
            caller=caller.name,
            inputs=owners,
            origin=record.trace,
            reservation=reservation,
        )
        try:
            with record.stages_of(ticket):
                predictions, own_order = await asyncio.wrap_future(ticket.future), None
        finally:
            ticket.future.cancel()  # asyncio would do that too, but later
    finally:
        state.engine.admission.close(reservation)
    if order_average:
        firsts = [k for k, owner in enumerate(owners) if k == 0 or owners[k - 1] != owner]
        own_order = [predictions[k] for k in firsts]
        predictions = await loop.run_in_executor(state.workers.tokenize, predictor.average_orders, asked, predictions)
    return Scored(
        predictions,
        own_order,
        queue_ms=ticket.queue_s * 1000,
        tokenize_ms=(tokenized - begun) * 1000,
        compute_ms=ticket.compute_s * 1000,
    )


def deadline_of(state: ServiceState, begun: float, timeout_s: float | None) -> float:
    """Return when a request's time is up, ``time.monotonic`` seconds: the server's limit, or what it asks if less."""
    limit = state.settings.request_timeout_s
    return begun + (limit if timeout_s is None else min(limit, timeout_s))


async def while_awaited(request: Request, work: Coroutine[Any, Any, T], *, deadline: float) -> T:
    """Return the work's result; cancel it when the client goes away or the deadline passes.

    Args:
        deadline: ``time.monotonic`` seconds.

    Raises:
        ClientGoneError: the connection closed first.
        DeadlineError: the deadline passed first.
        Exception: whatever the work raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait(
            {task, gone}, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError("the client closed its connection before the answer was ready")
        raise DeadlineError("the request's deadline passed before its answer was ready: send less or try later")
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    # The body was read to its end: whatever comes next is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        continue
