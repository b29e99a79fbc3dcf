"""The device's one thread, and the bounded queue in front of it. Knows no HTTP.

A request becomes a :class:`Ticket` of rows. Whenever the device is idle and rows wait, the thread forms
the best batch from all of them, whichever requests they came from, and runs it; it never waits for more.
Callers take turns, and so do a caller's requests (``service.scoring.fairness``): nobody waits for all of a long
request. A ticket's future holds its predictions in the order of its rows, or the first row's failure.

Rows that ``fast`` defers go back into the queue, in the same ticket, as rows that ``laplace`` is asked for. They share
batches with any such rows, and are patient: they take no turn of their own until they fill a batch, nothing else waits,
``PATIENCE`` batches have gone by, or half of their request's time has.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from laplora.errors import NonFiniteError
from service.errors import DeadlineError, DeviceFaultError, DeviceMemoryError, DrainingError, UnscorableInputError
from service.scoring.admission import Admission, Amount, Reservation
from service.scoring.batching import Waiting, halves, next_batch, padded_tokens
from service.scoring.device_faults import DeviceHealth, DeviceHungError, is_device_fault, is_out_of_memory
from service.scoring.fairness import Request, Turns
from service.scoring.plan import Ask
from service.telemetry.batch_report import BatchOutcome, BatchReport
from service.telemetry.unfailing import unfailing
from service.threads import settle

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.prompts.rows import EncodedRow

_log = logging.getLogger("laplora.service")

#: Batches for which deferred rows let others go first. Where one row in eight is deferred, they fill a batch by then.
PATIENCE = 8


class Scorer(Protocol):
    """What the engine needs of a predictor."""

    def predict(
        self,
        rows: Sequence[EncodedRow],
        predictive: str | None = None,
        *,
        also: Sequence[str] = (),
        target_risk: float | None = None,
    ) -> list[Prediction]:
        """Return one prediction per row, in order."""
        ...

    def predict_deferring(
        self, rows: Sequence[EncodedRow], *, also: Sequence[str] = (), target_risk: float | None = None
    ) -> tuple[list[Prediction], list[int]]:
        """Return ``fast``'s prediction per row, in order, and the positions of those that ``laplace`` has to answer."""
        ...


@dataclass(eq=False)
class Ticket:
    """One request's rows on their way through the engine. Times are ``time.monotonic`` seconds.

    ``inputs`` holds, for each row, the number of the request's input that it belongs to; ``caller`` is who asks,
    ``reservation`` what its waiting rows hold of the queue, ``trace`` what the reports of its batches name,
    ``waiting`` those of its rows that are in the queue, ``deferred`` whose turn its deferred rows have.
    """

    scorer: Scorer
    ask: Ask
    rows: tuple[EncodedRow, ...]
    deadline: float
    submitted: float
    inputs: tuple[int, ...]
    caller: str
    reservation: Reservation
    trace: Any = None
    future: Future[list[Prediction]] = field(default_factory=Future)
    results: dict[int, Prediction] = field(default_factory=dict)
    waiting: set[_QueuedRow] = field(default_factory=set)
    deferred: Request | None = None
    started: float | None = None
    finished: float | None = None

    @property
    def queue_s(self) -> float:
        """Seconds from arrival until the first row reached the device."""
        return (self.started or self.submitted) - self.submitted

    @property
    def compute_s(self) -> float:
        """Seconds from the first row's start to the last row's end, other requests' batches between included."""
        return (self.finished or 0.0) - self.started if self.started is not None else 0.0


@dataclass(frozen=True, eq=False)
class _QueuedRow(Waiting):
    """A row in the queue; ``patient_until`` is the number of the batch from which it is patient no more."""

    ticket: Ticket
    index: int
    ask: Ask
    patient_until: int = 0

    @property
    def row(self) -> EncodedRow:
        return self.ticket.rows[self.index]

    def is_patient(self, batch_number: int, now: float) -> bool:
        ticket = self.ticket
        return batch_number < self.patient_until and now - ticket.submitted < (ticket.deadline - ticket.submitted) / 2


@lru_cache(maxsize=4096)
def _kind(scorer_id: int, ask: Ask) -> object:
    """Return what stands for rows that can share a batch: one small object, for it is compared a lot."""
    return object()


class Engine:
    """One device thread behind a bounded queue.

    Args:
        token_budget: most padded tokens of one batch; may be changed at any time.
        max_queue_tokens: most tokens that wait.
        max_queue_rows: most rows that wait.
        max_tokenize_bytes: most bytes of text that are reserved for and not tokenised yet.
        client_share: most of the queue that one caller holds; a request with more is refused for good.
        on_batch: each is called on the device thread after each run; one that fails is logged once.
        health: is told of each run and of each fault.

    Attributes:
        admission: who holds how much of the queue.
    """

    def __init__(
        self,
        *,
        token_budget: int,
        max_queue_tokens: int,
        max_queue_rows: int,
        max_tokenize_bytes: int = 2**24,
        client_share: float = 1.0,
        on_batch: Sequence[Callable[[BatchReport], None]] = (),
        health: DeviceHealth | None = None,
    ) -> None:
        self.health = health or DeviceHealth(stall_s=math.inf)
        self.token_budget = token_budget
        self.admission = Admission(
            Amount(max_queue_rows, max_queue_tokens, max_tokenize_bytes), client_share=client_share
        )
        self._on_batch = on_batch
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._expiry = threading.Condition(lock)
        self._next_expiry = math.inf
        self._waiting: dict[_QueuedRow, None] = {}  # in order of arrival
        self._batch_number = 0
        self._queued_tokens = 0
        self._turns = Turns()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._open: set[Ticket] = set()
        self._draining = False
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the device thread. It is a daemon: a batch that never ends cannot hold up the process's exit."""
        self._thread = threading.Thread(target=self._run, name="laplora-device", daemon=True)
        self._thread.start()
        threading.Thread(target=self._expire, name="laplora-deadlines", daemon=True).start()

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        return self._queued_tokens

    @property
    def oldest_wait_s(self) -> float:
        """Seconds that the oldest waiting row has waited, 0 where none waits."""
        with self._changed:
            arrivals = [queued.ticket.submitted for queued in self._waiting]
        return time.monotonic() - min(arrivals) if arrivals else 0.0

    @property
    def open_tickets(self) -> int:
        """Requests that have no answer yet."""
        return len(self._open)

    def reserve(self, caller: str, asked: Amount, *, fewest_tokens: int = 0) -> Reservation:
        """Return room in the queue for a request that is not tokenised yet; close it when the request ends.

        Raises:
            DrainingError: the engine takes no more work.
            DeviceFaultError: the device has failed.
            BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Admission.reserve``.
        """
        self.require_open()
        return self.admission.reserve(caller, asked, fewest_tokens=fewest_tokens)

    def submit(
        self,
        scorer: Scorer,
        rows: Sequence[EncodedRow],
        *,
        ask: Ask,
        deadline: float,
        caller: str = "",
        inputs: Sequence[int] | None = None,
        trace: Any = None,
        reservation: Reservation | None = None,
    ) -> Ticket:
        """Return a ticket whose future will hold one prediction per row.

        Cancelling the future takes the rows out of the queue at once.

        Args:
            deadline: ``time.monotonic`` seconds at which rows still waiting are dropped.
            caller: name of whoever asks.
            inputs: which input each row belongs to, for messages; by default each row is an input.
            trace: handed back in the reports of the batches that hold these rows.
            reservation: what the request holds already; by default its room is reserved here.

        Raises:
            DrainingError: the engine takes no more work.
            DeviceFaultError: the device has failed.
            BatchTooLargeError: the rows would not fit into the caller's part of an empty queue.
            ClientQueueFullError, QueueFullError: they do not fit now.
        """
        known = Amount(len(rows), sum(len(row.token_ids) for row in rows))
        owners = range(len(rows)) if inputs is None else inputs
        with self._changed:
            self.require_open()
            if reservation is None:
                reservation = self.admission.reserve(caller, known, fewest_tokens=known.tokens)
            else:
                self.admission.correct(reservation, known)
            arrived = time.monotonic()
            ticket = Ticket(scorer, ask, tuple(rows), deadline, arrived, tuple(owners), caller, reservation, trace)
            request = Request(caller, _kind(id(scorer), ask))
            self._enqueue([_QueuedRow(len(row.token_ids), request, ticket, i, ask) for i, row in enumerate(rows)])
            self._open.add(ticket)
            self._changed.notify()
            if deadline < self._next_expiry:
                self._expiry.notify_all()
        ticket.future.add_done_callback(lambda _: self._forget(ticket))
        return ticket

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Return a future of ``function()`` run on the device thread before the next batch.

        What waits gets a batch between two calls.

        Raises:
            DrainingError: the engine takes no more work.
            DeviceFaultError: the device has failed.
        """
        future: Future[Any] = Future()
        with self._changed:
            self.require_open()
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def require_open(self) -> None:
        """Check that new work is taken.

        Raises:
            DeviceFaultError: the device has failed.
            DrainingError: the server is stopping.
        """
        self.health.require_no_fault()
        if self._draining:
            raise DrainingError("the server is stopping and takes no new requests")

    def drain(self) -> None:
        """Refuse new work; what waits is still served."""
        with self._changed:
            self._draining = True

    def stop(self, *, join_timeout_s: float = 0.0) -> None:
        """Fail what still waits with :class:`DrainingError` and end the thread after its current batch."""
        self._end(DrainingError("the server stopped before this request was answered"))
        if self._thread is not None and join_timeout_s > 0:
            self._thread.join(join_timeout_s)

    @contextmanager
    def latching_faults(self) -> Iterator[None]:
        """Hold while something may meet a device fault: it then latches, and ends the engine for everybody.

        Raises:
            DeviceFaultError: in place of the fault.
        """
        try:
            yield
        except Exception as error:
            if not is_device_fault(error):
                raise
            raise self._fail(error) from None

    def end_if_hung(self) -> None:
        """End the engine as after a fault, if its present run has taken more than the health's ``hang_s``."""
        if self.health.hung:
            thread = None if self._thread is None else sys._current_frames().get(self._thread.ident or 0)
            self._fail(DeviceHungError("a run of the device does not end"), traceback.extract_stack(thread))

    def _fail(self, error: BaseException, frames: traceback.StackSummary | None = None) -> DeviceFaultError:
        fault = self.health.latch(error, frames)
        self._end(fault)
        return fault

    def _end(self, error: Exception) -> None:
        """Fail what is open with an error, take no more, and end the thread after its current batch."""
        with self._changed:
            self._draining = self._stopped = True
            left = [ticket.future for ticket in self._open] + [future for _, future in self._calls]
            self._calls.clear()
            self._changed.notify_all()
            self._expiry.notify_all()
        for future in left:
            settle(future, error=error)

    def _forget(self, ticket: Ticket) -> None:
        with self._changed:
            self._open.discard(ticket)
            self._dequeue(list(ticket.waiting))
        self.admission.close(ticket.reservation)

    def _enqueue(self, rows: Sequence[_QueuedRow]) -> None:
        for queued in rows:
            self._waiting[queued] = None
            self._queued_tokens += queued.tokens
            queued.ticket.waiting.add(queued)

    def _dequeue(self, rows: Sequence[_QueuedRow]) -> None:
        for queued in rows:
            del self._waiting[queued]
            self._queued_tokens -= queued.tokens
            queued.ticket.waiting.remove(queued)

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            # Without this thread every request would wait for ever.
            self._fail(error)

    def _loop(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._turns = Turns()  # nobody is kept waiting by what anybody had
                self._changed.wait_for(lambda: self._stopped or self._calls or self._waiting)
                if self._stopped:
                    return
                call = self._calls.popleft() if self._calls else None
            if call is not None:
                self._run_call(*call)
            self._drop_expired()
            batch = self._take_batch()
            if batch:
                self._score(batch)

    def _run_call(self, function: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self.health.running(), self.latching_faults():
                result = function()
        except Exception as error:
            settle(future, error=error)
        except BaseException as error:
            settle(future, error=self._fail(error))
            raise
        else:
            settle(future, result=result)

    def _expire(self) -> None:
        """Drop requests at their deadlines, however long the device is busy."""
        while True:
            with self._changed:
                if self._stopped:
                    return
                # A request that was answered since may still be who is waited for: that costs one look too many.
                self._next_expiry = min((ticket.deadline for ticket in self._open), default=math.inf)
                left_s = self._next_expiry - time.monotonic()
                if left_s > 0:
                    self._expiry.wait(min(left_s, threading.TIMEOUT_MAX))
            self._drop_expired()

    def _drop_expired(self) -> None:
        now = time.monotonic()
        with self._changed:
            late = [ticket for ticket in self._open if ticket.deadline <= now]
        for ticket in late:
            settle(ticket.future, error=DeadlineError("the request's deadline passed before its answer was ready"))

    def _take_batch(self) -> list[_QueuedRow]:
        with self._changed:
            if not self._waiting:
                return []
            now = time.monotonic()
            self._batch_number += 1
            waiting = list(self._waiting)
            chosen, self._turns = next_batch(
                waiting,
                self._turns,
                token_budget=self.token_budget,
                patient={i for i, queued in enumerate(waiting) if queued.is_patient(self._batch_number, now)},
            )
            batch = [waiting[i] for i in chosen]
            self._dequeue(batch)
            for queued in batch:
                self.admission.release(queued.ticket.reservation, Amount(1, queued.tokens))
                if queued.ticket.started is None:
                    queued.ticket.started = now
            return batch

    def _score(self, batch: list[_QueuedRow]) -> None:
        """Run rows of one scorer, asked alike; on failure retry in halves until the row at fault is alone."""
        batch = [queued for queued in batch if not queued.ticket.future.done()]
        if not batch:
            return
        ticket, ask = batch[0].ticket, batch[0].ask
        begun = time.monotonic()
        failure: Exception | None = None
        try:
            with self.health.running(), self.latching_faults():
                predictions, deferred = _predict(ticket.scorer, [queued.row for queued in batch], ask)
            if len(predictions) != len(batch):
                raise RuntimeError(f"the predictor gave {len(predictions)} answers for {len(batch)} rows")
        except Exception as error:
            failure = error
        finished = time.monotonic()
        self._report(batch, ask.predictive, begun, finished - begun, failure)
        if failure is None:
            self._defer([batch[i] for i in deferred])
            again = set(deferred)
            for i, (queued, prediction) in enumerate(zip(batch, predictions, strict=True)):
                if i not in again:
                    _deliver(queued, prediction, finished)
            return
        if isinstance(failure, DeviceFaultError):
            return  # everybody has that answer already, and no retry could have another
        if len(batch) == 1:
            settle(ticket.future, error=_row_failure(failure, ticket.inputs[batch[0].index]))
            return
        # The traceback holds the failed run's tensors: let go of them before the retry needs the memory.
        failure.with_traceback(None)
        if is_out_of_memory(failure):
            # It waits for the device, as a run does, and may meet a fault or hang as one.
            with self.health.running(), self.latching_faults():
                _release_device_memory()
        failure = None
        for half in halves(len(batch)):
            self._score([batch[i] for i in half])

    def _defer(self, rows: Sequence[_QueuedRow]) -> None:
        """Queue rows that ``fast`` ran again, as rows of ``laplace``; not those of a request that has its answer."""
        with self._changed:
            for queued in rows:
                ticket = queued.ticket
                if ticket.future.done():
                    continue
                ask = Ask("laplace", queued.ask.also)
                ticket.deferred = ticket.deferred or Request(ticket.caller, _kind(id(ticket.scorer), ask))
                patient_until = self._batch_number + 1 + PATIENCE
                again = _QueuedRow(queued.tokens, ticket.deferred, ticket, queued.index, ask, patient_until)
                self._enqueue([again])
                self.admission.regain(ticket.reservation, Amount(1, queued.tokens))

    def _report(
        self, batch: list[_QueuedRow], predictive: str, begun: float, duration_s: float, failure: Exception | None
    ) -> None:
        lengths = [queued.tokens for queued in batch]
        outcome: BatchOutcome = "ok"
        if failure is not None:
            outcome = "out_of_memory" if is_out_of_memory(failure) else "failed"
            _log.warning(
                "batch did not run",
                extra={
                    "event": "batch_failed",
                    "rows": len(batch),
                    "outcome": outcome,
                    "error": type(failure).__name__,
                },
            )
        elif duration_s > 0:
            rate = sum(lengths) / duration_s
            before = self.admission.tokens_per_s
            self.admission.tokens_per_s = rate if before == 0 else 0.8 * before + 0.2 * rate
        tickets = dict.fromkeys(queued.ticket for queued in batch)
        traces = tuple(ticket.trace for ticket in tickets if ticket.trace is not None)
        padded = padded_tokens(lengths)
        report = BatchReport(predictive, len(batch), sum(lengths), padded, duration_s, outcome, begun, traces)
        for watcher in self._on_batch:
            with unfailing(getattr(watcher, "__qualname__", "on_batch")):
                watcher(report)


def _predict(scorer: Scorer, rows: Sequence[EncodedRow], ask: Ask) -> tuple[list[Prediction], list[int]]:
    """Return a prediction per row, and the positions of those that wait for ``laplace``."""
    if ask.predictive == "fast":
        return scorer.predict_deferring(rows, also=ask.also, target_risk=ask.target_risk)
    return scorer.predict(rows, ask.predictive, also=ask.also, target_risk=ask.target_risk), []


def _release_device_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _row_failure(error: Exception, index: int) -> Exception:
    if isinstance(error, NonFiniteError):
        return UnscorableInputError(
            f"the model has no finite answer for input {index}: change or leave out that input",
            field=f"inputs.{index}",
        )
    if is_out_of_memory(error):
        return DeviceMemoryError(
            f"input {index} alone does not fit the device's memory: shorten it or try again later",
            field=f"inputs.{index}",
        )
    return error


def _deliver(queued: _QueuedRow, prediction: Prediction, finished: float) -> None:
    ticket = queued.ticket
    ticket.results[queued.index] = prediction
    if len(ticket.results) == len(ticket.rows):
        ticket.finished = finished
        settle(ticket.future, result=[ticket.results[i] for i in range(len(ticket.rows))])
