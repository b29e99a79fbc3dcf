"""The queue in front of the device: which requests hold how much of it, which rows wait, and whose turn it is.

A request enters with what its prompts are expected to have, puts its ticket's rows in once they are tokenised, and
leaves when its future is settled or cancelled: its rows are gone then, and its room is given back.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from service.errors import DeadlineError, DrainingError
from service.scoring.admission import Admission, Amount
from service.scoring.batching import Waiting, next_batch
from service.scoring.entry import Entry
from service.scoring.fairness import Request, Turns, is_job
from service.scoring.model import counted_tokens
from service.scoring.ticket import Ask, Ticket
from service.threads import settle

if TYPE_CHECKING:
    from laplora.predictor import Predictor
    from laplora.prompts.rows import EncodedRow


@dataclass(frozen=True, eq=False)
class QueuedRow(Waiting):
    """A row of a ticket."""

    entry: Entry
    ticket: Ticket
    index: int

    @property
    def row(self) -> EncodedRow:
        return self.ticket.rows[self.index]

    @property
    def prompt_tokens(self) -> int:
        """The prompt's tokens: what the queue holds of it. ``tokens`` is what the device runs."""
        return len(self.row.token_ids)


@lru_cache(maxsize=4096)
def _group(predictor_id: int, ask: Ask) -> object:
    """Return what stands for rows that can share a batch: one small object, for it is compared a lot.

    By the predictor's id, for the cache would keep a predictor alive after its artifact was unloaded.
    """
    return object()


class Queue:
    """Requests on their way to the device. Every method may be called from any thread, ``take`` from one at a time.

    No thread, and no clock: times are given. One lock, held for moments only, as the event loop takes it too: ``take``
    chooses a batch without it. Arguments as of ``Admission``.

    Attributes:
        changed: the lock; notified when rows come.
        draining: no request enters any more.
    """

    def __init__(self, limits: Amount, *, client_share: float = 1.0) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.draining = False
        self._admission = Admission(limits, client_share=client_share)
        self._entries: set[Entry] = set()
        self._waiting: dict[tuple[Entry, int], QueuedRow] = {}  # by entry and index, in order of arrival
        self._turns = Turns()  # only ``take`` changes it

    @property
    def entries(self) -> frozenset[Entry]:
        """Those that have entered and have no answer yet."""
        with self.changed:
            return frozenset(self._entries)

    @property
    def rows(self) -> int:
        return len(self._waiting)

    @property
    def tokens(self) -> int:
        with self.changed:
            return sum(queued.prompt_tokens for queued in self._waiting.values())

    @property
    def most(self) -> Amount:
        return self._admission.limits

    @property
    def held(self) -> Amount:
        """The amount that all requests hold together, with those being tokenised."""
        return self._admission.total

    def oldest_wait_s(self, now: float) -> float:
        """Return the seconds that the oldest waiting row of a request has waited, 0 where none waits.

        Rows of jobs do not count: they wait whenever requests keep the device busy, and that is as it should be.
        """
        with self.changed:
            waiting = (entry for entry, _ in self._waiting if not is_job(entry.caller))
            return max((now - (entry.queued_at or now) for entry in waiting), default=0.0)

    def require_open(self) -> None:
        """Return if requests may enter.

        Raises:
            DrainingError: none does any more.
        """
        if self.draining:
            raise DrainingError("the server is stopping and takes no new requests")

    def check_room(self, caller: str, now: float) -> None:
        """Check that one short row would find room: see ``Admission.check_room``."""
        with self.changed:
            self._admission.check_room(caller, now=now)

    def resize(self, limits: Amount) -> None:
        """Set other limits: see ``Admission.resize``."""
        with self.changed:
            self._admission.resize(limits)

    def enter(self, entry: Entry, expected: Amount, *, fewest_tokens: int, now: float) -> None:
        """Reserve room for a request that is not tokenised yet. From now on its future has to be settled or cancelled.

        Raises:
            DrainingError: none enters any more.
            BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Admission.reserve``.
        """
        with self.changed:
            self.require_open()
            entry.reservation = self._admission.reserve(entry.caller, expected, now=now, fewest_tokens=fewest_tokens)
            self._entries.add(entry)
            entry.entered_at = now
        entry.future.add_done_callback(lambda _: self._leave(entry))

    def put(self, entry: Entry, ticket: Ticket, predictor: Predictor, *, now: float) -> None:
        """Let a ticket's rows wait for a predictor; nothing where its request is over already.

        Raises:
            BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Admission.correct``.
        """
        costs = [counted_tokens(predictor, row) for row in ticket.rows]
        with self.changed:
            if entry not in self._entries or entry.reservation is None:
                return
            self._admission.correct(entry.reservation, Amount(len(ticket.rows), ticket.tokens), now=now)
            entry.ticket, entry.predictor, entry.queued_at = ticket, predictor, now
            request = Request(entry.caller, _group(id(predictor), ticket.ask))
            for i, cost in enumerate(costs):
                self._waiting[entry, i] = QueuedRow(cost, request, entry, ticket, i)
            self.changed.notify()

    def take(self, now: float, token_budget: int) -> list[QueuedRow]:
        """Return the rows of the next batch, shortest first. Requests past their deadline fail.

        There are none where none waits, or where all that were chosen left the queue meanwhile.
        """
        with self.changed:
            for entry in [entry for entry in self._entries if entry.deadline <= now]:
                settle(entry.future, error=DeadlineError("the request's deadline passed before its answer was ready"))
            waiting = list(self._waiting.values())
        if not waiting:
            self._turns = Turns()  # nobody is kept waiting by what anybody had
            return []
        chosen, self._turns = next_batch(waiting, self._turns, token_budget=token_budget)
        batch = []
        with self.changed:
            for queued in (waiting[i] for i in chosen):
                entry = queued.entry
                if self._waiting.pop((entry, queued.index), None) is None or entry.reservation is None:
                    continue
                batch.append(queued)
                self._admission.change(entry.reservation, Amount(-1, -queued.prompt_tokens))
                if entry.started_at is None:
                    entry.started_at = now
        return batch

    def learn_speed(self, tokens: int, duration_s: float) -> None:
        """Take in how long the device took: see ``Admission.learn_speed``."""
        with self.changed:
            self._admission.learn_speed(tokens, duration_s)

    def drain(self) -> None:
        """Let no more requests enter; those that have are still served."""
        self.draining = True

    def end(self, error: Exception) -> None:
        """Fail every request with an error, and let no more enter."""
        self.draining = True
        for entry in self.entries:
            settle(entry.future, error=error)

    def _leave(self, entry: Entry) -> None:
        with self.changed:
            self._entries.discard(entry)
            for i in range(entry.row_count):
                self._waiting.pop((entry, i), None)
            if entry.reservation is not None:
                self._admission.close(entry.reservation)
