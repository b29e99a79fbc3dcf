"""The queue in front of the device: which plans hold how much of it, which rows wait, and whose turn it is.

A plan enters with what its prompts are expected to have, puts its rows in once they are tokenised, and leaves when its
future is settled or cancelled: its rows are gone then, and its room is given back.

Rows that ``fast`` defers are put back, in the same plan, as rows that ``laplace`` is asked for. They are patient: they
share batches with any such rows, but take no turn of their own until they fill a batch, nothing else waits,
``PATIENCE`` batches have gone by, or half of their plan's time has.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from service.errors import DeadlineError, DrainingError
from service.scoring.admission import Admission, Amount, Reservation
from service.scoring.batching import Waiting, next_batch
from service.scoring.fairness import Request, Turns
from service.scoring.plan import Ask, Plan
from service.threads import settle

if TYPE_CHECKING:
    from laplora.prompts.rows import EncodedRow

#: Batches for which deferred rows let others go first. Where one row in eight is deferred, they fill a batch by then.
PATIENCE = 8


@dataclass(frozen=True, eq=False)
class QueuedRow(Waiting):
    """A row of a plan; ``patient_until`` is the number of the batch from which it is patient no more."""

    plan: Plan
    index: int
    ask: Ask
    patient_until: int = 0

    @property
    def row(self) -> EncodedRow:
        """The prompt."""
        return self.plan.rows[self.index]

    @property
    def prompt_tokens(self) -> int:
        """The prompt's tokens: what the queue holds of it. ``tokens`` is what the device runs."""
        return len(self.row.token_ids)

    def is_patient(self, batch_number: int, now: float) -> bool:
        """Return whether it takes no turn of its own in this batch."""
        queued_at = self.plan.queued_at or now
        return batch_number < self.patient_until and now - queued_at < (self.plan.deadline - queued_at) / 2


@dataclass(eq=False)
class _Entry:
    """A plan in the queue: what it holds, and the request of its rows that ``fast`` deferred."""

    reservation: Reservation
    deferred: Request | None = None


@lru_cache(maxsize=4096)
def _group(predictor_id: int, ask: Ask) -> object:
    """Return what stands for rows that can share a batch: one small object, for it is compared a lot.

    By the predictor's id, for the cache would keep a predictor alive after its artifact was unloaded.
    """
    return object()


class Queue:
    """Plans on their way to the device. Every method may be called from any thread, ``take`` from one at a time.

    No thread, and no clock: times are given. One lock, held for moments only, as the event loop takes it too: ``take``
    chooses a batch without it. Arguments as of ``Admission``.

    Attributes:
        changed: the lock; notified when rows come.
        draining: no plan enters any more.
    """

    def __init__(self, limits: Amount, *, client_share: float = 1.0) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.draining = False
        self._admission = Admission(limits, client_share=client_share)
        self._entries: dict[Plan, _Entry] = {}
        self._waiting: dict[tuple[Plan, int], QueuedRow] = {}  # by plan and index, in order of arrival
        self._turns = Turns()  # only ``take`` changes these two
        self._batch_number = 0

    @property
    def plans(self) -> frozenset[Plan]:
        """Those that have entered and have no answer yet."""
        with self.changed:
            return frozenset(self._entries)

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return len(self._waiting)

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        with self.changed:
            return sum(queued.prompt_tokens for queued in self._waiting.values())

    @property
    def held(self) -> Amount:
        """What all plans together hold, those being tokenised included."""
        return self._admission.total

    def oldest_wait_s(self, now: float) -> float:
        """Return the seconds that the oldest waiting row has waited, 0 where none waits."""
        with self.changed:
            return max((now - (plan.queued_at or now) for plan, _ in self._waiting), default=0.0)

    def require_open(self) -> None:
        """Return if plans may enter.

        Raises:
            DrainingError: none does any more.
        """
        if self.draining:
            raise DrainingError("the server is stopping and takes no new requests")

    def check_room(self, caller: str) -> None:
        """Check that one short row would find room: see ``Admission.check_room``."""
        with self.changed:
            self._admission.check_room(caller)

    def enter(self, plan: Plan, expected: Amount, *, fewest_tokens: int, now: float) -> None:
        """Reserve room for a plan that is not tokenised yet. From now on its future has to be settled or cancelled.

        Raises:
            DrainingError: no plan enters any more.
            BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Admission.reserve``.
        """
        with self.changed:
            self.require_open()
            reservation = self._admission.reserve(plan.caller, expected, fewest_tokens=fewest_tokens)
            self._entries[plan] = _Entry(reservation)
            plan.entered_at = now
        plan.future.add_done_callback(lambda _: self._leave(plan))

    def put(self, plan: Plan, rows: Sequence[EncodedRow], owners: Sequence[int], *, now: float) -> None:
        """Let the rows of a plan wait, each with the number of its input; nothing where the plan is over already.

        Raises:
            BatchTooLargeError, ClientQueueFullError, QueueFullError: as ``Admission.correct``.
        """
        costs = [plan.predictor.device_tokens(row) for row in rows]
        with self.changed:
            entry = self._entries.get(plan)
            if entry is None:
                return
            tokens = sum(len(row.token_ids) for row in rows)
            self._admission.correct(entry.reservation, Amount(len(rows), tokens))
            plan.rows, plan.owners, plan.queued_at = tuple(rows), tuple(owners), now
            request = Request(plan.caller, _group(id(plan.predictor), plan.ask))
            for i, cost in enumerate(costs):
                self._waiting[plan, i] = QueuedRow(cost, request, plan, i, plan.ask)
            self.changed.notify()

    def put_back(self, rows: Iterable[QueuedRow]) -> None:
        """Let rows that ``fast`` ran wait again, as rows of ``laplace``; not those of a plan that is over.

        For the thread that calls ``take``: nobody is notified.
        """
        patient_until = self._batch_number + 1 + PATIENCE
        with self.changed:
            for queued in rows:
                plan, entry = queued.plan, self._entries.get(queued.plan)
                if entry is None:
                    continue
                ask = Ask("laplace", queued.ask.also)
                entry.deferred = entry.deferred or Request(plan.caller, _group(id(plan.predictor), ask))
                again = QueuedRow(queued.tokens, entry.deferred, plan, queued.index, ask, patient_until)
                self._waiting[plan, queued.index] = again
                self._admission.change(entry.reservation, Amount(1, queued.prompt_tokens))

    def take(self, now: float, token_budget: int) -> list[QueuedRow]:
        """Return the rows of the next batch, shortest first. Plans past their deadline fail.

        There are none where none waits, or where all that were chosen left the queue meanwhile.
        """
        with self.changed:
            for plan in [plan for plan in self._entries if plan.deadline <= now]:
                settle(plan.future, error=DeadlineError("the request's deadline passed before its answer was ready"))
            waiting = list(self._waiting.values())
        if not waiting:
            self._turns = Turns()  # nobody is kept waiting by what anybody had
            return []
        self._batch_number += 1
        patient = {i for i, queued in enumerate(waiting) if queued.is_patient(self._batch_number, now)}
        chosen, self._turns = next_batch(waiting, self._turns, token_budget=token_budget, patient=patient)
        batch = []
        with self.changed:
            for queued in (waiting[i] for i in chosen):
                plan = queued.plan
                if self._waiting.pop((plan, queued.index), None) is None:
                    continue
                batch.append(queued)
                self._admission.change(self._entries[plan].reservation, Amount(-1, -queued.prompt_tokens))
                if plan.started_at is None:
                    plan.started_at = now
        return batch

    def learn_speed(self, tokens: int, duration_s: float) -> None:
        """Take in how long the device took: see ``Admission.learn_speed``."""
        with self.changed:
            self._admission.learn_speed(tokens, duration_s)

    def drain(self) -> None:
        """Let no more plans enter; those that have are still served."""
        self.draining = True

    def end(self, error: Exception) -> None:
        """Fail every plan with an error, and let no more enter."""
        self.draining = True
        for plan in self.plans:
            settle(plan.future, error=error)

    def _leave(self, plan: Plan) -> None:
        with self.changed:
            for i in range(len(plan.rows)):
                self._waiting.pop((plan, i), None)
            self._admission.close(self._entries.pop(plan).reservation)
