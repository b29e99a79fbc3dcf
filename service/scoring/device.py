"""The device's one thread: runs the queue's batches, one after another. Knows no HTTP.

Whenever the device is idle and rows wait, the thread takes the best batch of all of them, and runs it; it never waits
for more. A batch that fails is tried again in halves until the row at fault is alone.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from laplora.errors import NonFiniteError
from service.errors import DeviceFaultError, DeviceMemoryError, DrainingError, UnscorableInputError
from service.scoring.batching import padded_tokens
from service.scoring.device_faults import DeviceHealth, DeviceHungError, is_device_fault, is_out_of_memory
from service.scoring.queue import Queue, QueuedRow
from service.telemetry.batch_report import BatchOutcome, BatchReport
from service.telemetry.unfailing import unfailing
from service.threads import forget_frames, settle

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

_log = logging.getLogger("laplora.service")


class Device:
    """One thread that runs what waits in a queue.

    Args:
        token_budget: most padded tokens of one batch; may be changed at any time.
        on_batch: each is called on the device's thread after each run; one that fails is logged once.
        health: is told of each run and of each fault.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        token_budget: int,
        on_batch: Sequence[Callable[[BatchReport], None]] = (),
        health: DeviceHealth | None = None,
    ) -> None:
        self.health = health or DeviceHealth()
        self.token_budget = token_budget
        self._queue = queue
        self._on_batch = on_batch
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopped = False
        # A daemon: a batch that never ends cannot hold up the process's exit.
        self._thread = threading.Thread(target=self._run, name="laplora-device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def require_open(self) -> None:
        """Return if new work is taken.

        Raises:
            DeviceFaultError: the device has failed.
            DrainingError: the server is stopping.
        """
        self.health.require_no_fault()
        self._queue.require_open()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Return a future of ``function()`` run on the device's thread before the next batch.

        Waiting rows get a batch between two calls.

        Raises:
            DeviceFaultError, DrainingError: as ``require_open``.
        """
        future: Future[Any] = Future()
        with self._queue.changed:
            self.require_open()
            self._calls.append((function, future))
            self._queue.changed.notify()
        return future

    def stop(self, *, join_timeout_s: float = 0.0) -> None:
        """Fail what still waits with :class:`DrainingError` and end the thread after its current batch."""
        self._end(DrainingError("the server stopped before this request was answered"))
        if join_timeout_s > 0:
            self._thread.join(join_timeout_s)

    @contextmanager
    def latching_faults(self) -> Iterator[None]:
        """Hold while something may meet a device fault: it then latches, and ends the device for everybody.

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
        """End the device as after a fault, if its present run has taken more than the health's ``hang_s``."""
        if self.health.hung:
            frame = sys._current_frames().get(self._thread.ident or 0)
            self._fail(DeviceHungError("a run of the device does not end"), traceback.extract_stack(frame))

    def _fail(self, error: BaseException, frames: traceback.StackSummary | None = None) -> DeviceFaultError:
        fault = self.health.latch(error, frames)
        self._end(fault)
        return fault

    def _end(self, error: Exception) -> None:
        with self._queue.changed:
            self._stopped = True
            calls = [future for _, future in self._calls]
            self._calls.clear()
            self._queue.end(error)
            self._queue.changed.notify()
        for future in calls:
            settle(future, error=error)

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._step()
        except BaseException as error:
            # Without this thread every request would wait for ever.
            self._fail(error)

    def _step(self) -> None:
        """Run a call and a batch, those that wait; wait where none does."""
        with self._queue.changed:
            call = self._calls.popleft() if self._calls else None
        if call is not None:
            self._run_call(*call)
        batch = self._queue.take(time.monotonic(), self.token_budget)
        if batch:
            self._score(batch)
        elif call is None:
            with self._queue.changed:
                self._queue.changed.wait_for(lambda: self._stopped or self._calls or self._queue.rows)

    def _run_call(self, function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            with self._running():
                result = function()
        except Exception as error:
            forget_frames(error)
            settle(future, error=error)
        except BaseException as error:
            settle(future, error=self._fail(error))
            raise
        else:
            settle(future, result=result)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self.health.running(), self.latching_faults():
            yield

    def _score(self, batch: list[QueuedRow]) -> None:
        """Run rows of one predictor, asked alike; on failure retry in halves until the row at fault is alone."""
        batch = [queued for queued in batch if not queued.entry.future.done()]
        if not batch:
            return
        begun = time.monotonic()
        failure: Exception | None = None
        try:
            with self._running():
                predictions = _predict(batch)
            if len(predictions) != len(batch):
                raise RuntimeError(f"the predictor gave {len(predictions)} answers for {len(batch)} rows")
        except Exception as error:
            forget_frames(error)  # they hold the failed run's tensors: a retry needs the memory
            failure = error
        finished = time.monotonic()
        self._report(batch, begun, finished - begun, failure)
        if failure is None:
            for queued, prediction in zip(batch, predictions, strict=True):
                queued.entry.deliver(queued.index, prediction, finished)
            return
        if isinstance(failure, DeviceFaultError):
            return  # everybody has that answer already, and no retry could have another
        if len(batch) == 1:
            (queued,) = batch
            settle(queued.entry.future, error=_row_failure(failure, queued.index))
            return
        if is_out_of_memory(failure):
            with self._running():  # it waits for the device, as a run does, and may meet a fault or hang as one
                _release_device_memory()
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            self._score(half)

    def _report(self, batch: list[QueuedRow], begun: float, duration_s: float, failure: Exception | None) -> None:
        lengths = [queued.prompt_tokens for queued in batch]
        outcome: BatchOutcome = "ok"
        if failure is not None:
            outcome = "out_of_memory" if is_out_of_memory(failure) else "failed"
            fields = {"rows": len(batch), "outcome": outcome, "error": type(failure).__name__}
            _log.warning("batch did not run", extra={"event": "batch_failed", **fields})
        elif duration_s > 0:
            self._queue.learn_speed(sum(lengths), duration_s)
        entries = dict.fromkeys(queued.entry for queued in batch)
        report = BatchReport(
            predictive=batch[0].ticket.ask.predictive,
            rows=len(batch),
            tokens=sum(lengths),
            padded_tokens=padded_tokens(lengths),
            duration_s=duration_s,
            outcome=outcome,
            begun=begun,
            traces=tuple(entry.trace for entry in entries if entry.trace is not None),
        )
        for watcher in self._on_batch:
            with unfailing(getattr(watcher, "__qualname__", "on_batch")):
                watcher(report)


def _predict(batch: Sequence[QueuedRow]) -> list[Prediction]:
    predictor, ask = batch[0].entry.predictor, batch[0].ticket.ask
    assert predictor is not None
    rows = [queued.row for queued in batch]
    return predictor.predict(rows, ask.predictive, also=ask.also, covariance=ask.covariance)


def _release_device_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _row_failure(error: Exception, index: int) -> Exception:
    field = f"inputs.{index}"
    if isinstance(error, NonFiniteError):
        message = f"the model has no finite answer for input {index}: change or leave out that input"
        return UnscorableInputError(message, field=field)
    if is_out_of_memory(error):
        message = f"input {index} alone does not fit the device's memory: shorten it or try again later"
        return DeviceMemoryError(message, field=field)
    return error
