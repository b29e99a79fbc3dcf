"""A request in a queue: the room that it holds, its ticket once its rows are known, and its answers so far."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service.scoring.admission import Reservation
from service.scoring.ticket import Ticket
from service.telemetry.request_record import STAGES, Stage
from service.threads import settle

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction
    from laplora.predictor import Predictor


@dataclass(eq=False)
class Entry:
    """A request in a queue, from when it has room until it is answered or given up. Times are ``time.monotonic`` s.

    Attributes:
        caller: name of who asks; deadline: when rows that still wait are dropped.
        trace: its span, None where nothing is traced (``RequestRecord.trace``).
        reservation: what it holds of the queue; None before it has entered.
        ticket, predictor: its rows and what answers them; None while they are tokenised, the predictor for good where
            another process has it.
        future: holds one prediction for each row, or the first row's failure.
        predictions: those that are there, by row.
        entered_at, queued_at, started_at, finished_at: when it had room in the queue, its rows were tokenised, the
            first was on the device, and the last was answered; None before.
    """

    caller: str
    deadline: float = math.inf
    trace: Any = None
    reservation: Reservation | None = None
    ticket: Ticket | None = None
    predictor: Predictor | None = None
    future: Future[list[Prediction]] = field(default_factory=Future)
    predictions: dict[int, Prediction] = field(default_factory=dict)
    entered_at: float | None = None
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def row_count(self) -> int:
        """How many rows it has; 0 while they are tokenised."""
        return 0 if self.ticket is None else len(self.ticket.rows)

    def deliver(self, index: int, prediction: Prediction, now: float) -> None:
        """Take in a row's prediction; with the last one the future has its result."""
        self.predictions[index] = prediction
        if len(self.predictions) == self.row_count:
            self.finished_at = now
            settle(self.future, result=[self.predictions[i] for i in range(self.row_count)])

    def end(self, now: float) -> list[Stage]:
        """Give up what has no answer yet, and return the stages that the request came to."""
        self.future.cancel()
        times = (self.entered_at, self.queued_at, self.started_at, self.finished_at)
        return [
            Stage(name, begun, now if ended is None else ended)
            for name, begun, ended in zip(STAGES, times, times[1:], strict=False)
            if begun is not None
        ]
